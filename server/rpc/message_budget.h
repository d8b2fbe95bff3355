// How much of a list goes into one message, so that the whole of it stays below what gRPC takes in, 4 MiB.
#ifndef WSYNC_SERVER_RPC_MESSAGE_BUDGET_H_
#define WSYNC_SERVER_RPC_MESSAGE_BUDGET_H_

#include <cstddef>
#include <cstdint>

namespace wsync {

// Together well below 4 MiB, whatever stands in them.
inline constexpr size_t kMemberListBytes = size_t{2} << 20;
inline constexpr size_t kEventListBytes = size_t{512} << 10;
inline constexpr size_t kReplicaListBytes = size_t{512} << 10;

class MessageBudget {
 public:
  explicit MessageBudget(size_t bytes) : left_(bytes) {}

  // Whether this one still goes in. After one that does not, none does: what is shown of a list is a part of it that
  // hangs together.
  template <typename Message>
  bool Take(const Message& message) {
    constexpr size_t kTagAndLength = 8;
    const size_t bytes = message.ByteSizeLong() + kTagAndLength;
    if (omitted_ > 0 || bytes > left_) {
      ++omitted_;
      return false;
    }
    left_ -= bytes;
    return true;
  }
  int32_t omitted() const { return omitted_; }

 private:
  size_t left_;
  int32_t omitted_ = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_MESSAGE_BUDGET_H_
