// For how long one thread's piece of work was seen running by another, which looks again and again.
//
// Only what it saw itself counts: a process that was stopped as a whole, or a machine that slept, was not stuck.
#ifndef WSYNC_SERVER_CORE_SEEN_RUNNING_H_
#define WSYNC_SERVER_CORE_SEEN_RUNNING_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace wsync {

class SeenRunning {
 public:
  // The looking thread only, a few times a second. `work` tells one piece from the next; 0: none runs.
  absl::Duration Look(uint64_t work, absl::Time now) {
    const bool same = work != 0 && work == work_;
    for_ = same ? for_ + std::min(now - looked_, kLongestGap) : absl::ZeroDuration();
    work_ = work;
    looked_ = now;
    return for_;
  }

 private:
  static constexpr absl::Duration kLongestGap = absl::Milliseconds(500);  // between looks, of a process that runs

  uint64_t work_ = 0;
  absl::Time looked_;
  absl::Duration for_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_SEEN_RUNNING_H_
