// How many calls of one kind may be open at a time: each holds memory for what it was sent, and waits for a turn of a
// thread. A bound for clients that leak calls, far above what those need that do not. Thread-safe.
#ifndef WSYNC_SERVER_RPC_CALL_LIMIT_H_
#define WSYNC_SERVER_RPC_CALL_LIMIT_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wsync {

class CallLimit {
 public:
  CallLimit(std::string call, int64_t most) : call_(std::move(call)), most_(most) {}

  // One call's place, for as long as it lives. REQUIRES: the limit outlives it.
  class Place {
   public:
    explicit Place(CallLimit* limit) : limit_(limit), number_(limit->open_.fetch_add(1) + 1) {}
    ~Place() { limit_->open_.fetch_sub(1); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    // RESOURCE_EXHAUSTED: there was none left, and the call has to end.
    absl::Status status() const {
      if (number_ <= limit_->most_) return absl::OkStatus();
      return absl::ResourceExhaustedError(absl::StrCat(limit_->most_, " calls of ", limit_->call_,
                                                       " are open, and more are not taken: end some of them"));
    }

   private:
    CallLimit* const limit_;
    const int64_t number_;
  };

 private:
  const std::string call_;
  const int64_t most_;
  std::atomic<int64_t> open_ = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CALL_LIMIT_H_
