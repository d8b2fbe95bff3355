// Shared memory that a client process owns and lends to an agent.
//
// The name is needed only until the agent has opened it: Unlink() after register or attach, and a crash of either side
// leaves nothing behind in /dev/shm. Move-only by unique_ptr; not thread-safe.
#ifndef WSYNC_CLIENT_LOCAL_SHARED_SEGMENT_H_
#define WSYNC_CLIENT_LOCAL_SHARED_SEGMENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace wsync {

class SharedSegment {
 public:
  // A new zeroed object of `bytes` under a random name, readable by this user only. RESOURCE_EXHAUSTED when /dev/shm
  // cannot hold it (said before any byte is written, not by a SIGBUS later).
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Create(int64_t bytes, const std::string& purpose);
  ~SharedSegment();  // unmaps and unlinks
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  void Unlink();

 private:
  SharedSegment(std::string name, std::byte* data, int64_t bytes)
      : name_(std::move(name)), data_(data), bytes_(bytes) {}
  std::string name_;
  std::byte* data_;
  int64_t bytes_;
  bool linked_ = true;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_LOCAL_SHARED_SEGMENT_H_
