// Shared memory that a client process owns and lends to an agent.
//
// It has no name: the agent opens it by this process's descriptor (SharedMemoryHandle), again and again if it must, and
// when this process ends in whatever way nothing is left behind. It is no part of /dev/shm, however small that is, and
// sealed: nobody can cut it short while an agent has it mapped. Not thread-safe.
#ifndef WSYNC_CLIENT_LOCAL_SHARED_SEGMENT_H_
#define WSYNC_CLIENT_LOCAL_SHARED_SEGMENT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/backend/memory.h"

namespace wsync {

class SharedSegment {
 public:
  // A new zeroed object of `bytes`, for processes of this user only. RESOURCE_EXHAUSTED when there is no memory for it
  // (said before any byte is written, not by a signal later).
  static absl::StatusOr<std::unique_ptr<SharedSegment>> Create(int64_t bytes, const std::string& purpose);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  MemoryHandle handle() const;

 private:
  SharedSegment(int fd, std::byte* data, int64_t bytes) : fd_(fd), data_(data), bytes_(bytes) {}
  const int fd_;
  std::byte* const data_;
  const int64_t bytes_;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_LOCAL_SHARED_SEGMENT_H_
