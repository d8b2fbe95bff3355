// Mapped memory that another process can take away: one that truncates what it lent, or a file that is being read.
//
// Touching a page that is gone raises SIGBUS, which ends a process. Inside a guarded range it does not: the whole range
// becomes zero pages of our own and is marked as cut, for as long as it is guarded. Whoever used the memory asks for
// the mark afterwards, before it vouches for what it read or wrote: until then zeros may look like contents. A full
// /dev/shm, which cannot give a page that nobody touched yet, looks the same. A fault anywhere else does what it did
// before. Thread-safe; the signal's handler takes no lock.
#ifndef WSYNC_SERVER_CORE_GUARDED_RANGE_H_
#define WSYNC_SERVER_CORE_GUARDED_RANGE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace wsync {

// Whether the range that an address lies in was cut; never, where no range is guarded. Good while the range is guarded.
class CutMark {
 public:
  CutMark() = default;
  bool cut() const { return mark_ != nullptr && mark_->load(std::memory_order_acquire); }

 private:
  friend CutMark CutMarkAt(const void* address);
  explicit CutMark(const std::atomic<bool>* mark) : mark_(mark) {}
  const std::atomic<bool>* mark_ = nullptr;
};
// For those who are handed addresses. Takes a lock: once per buffer or bucket, not per row.
CutMark CutMarkAt(const void* address);

class GuardedRange {
 public:
  // The ranges that can be guarded at a time: twice what one client can lend, since the next one's come before the last
  // one's go.
  static constexpr size_t kMaxRanges = 262'144;

  // REQUIRES: a mapping begins at `data`, and no part of it is guarded already. RESOURCE_EXHAUSTED: kMaxRanges are.
  static absl::StatusOr<std::unique_ptr<GuardedRange>> Create(const void* data, int64_t bytes);
  ~GuardedRange();  // before the memory is unmapped, and after its last use
  GuardedRange(const GuardedRange&) = delete;
  GuardedRange& operator=(const GuardedRange&) = delete;

  bool cut() const;

 private:
  explicit GuardedRange(size_t slot) : slot_(slot) {}
  const size_t slot_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_GUARDED_RANGE_H_
