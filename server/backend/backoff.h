// Waiting for the GPU without burning a core: tight at first, then in sleeps of a thousandth of what was waited
// already.
//
// Short work is seen at once; a transfer of 100 ms is noticed 0.1 ms late; a wait of seconds costs a thousand looks a
// second. One waiting thread's own.
#ifndef WSYNC_SERVER_BACKEND_BACKOFF_H_
#define WSYNC_SERVER_BACKEND_BACKOFF_H_

#include <sys/prctl.h>

#include <algorithm>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/core/clock.h"

namespace wsync {

class Backoff {
 public:
  // Pauses before the next look. False, at once, when `deadline` has passed.
  bool Pause(absl::Time deadline) {
    const absl::Time now = MonotonicNow();
    if (now >= deadline) return false;
    const absl::Duration waited = now - begin_;
    if (waited < kSpin) {
      std::this_thread::yield();
      return true;
    }
    SleepPunctually();
    absl::SleepFor(std::min(deadline - now, std::clamp(waited / 1000, kShortest, kLongest)));
    return true;
  }

 private:
  // Linux ends a thread's sleeps up to 50 us late unless told otherwise, which four waits in a row would add up.
  static void SleepPunctually() {
    [[maybe_unused]] static thread_local const int told = prctl(PR_SET_TIMERSLACK, kSlackNanoseconds);
  }

  static constexpr unsigned long kSlackNanoseconds = 1000;
  static constexpr absl::Duration kSpin = absl::Microseconds(50);      // a small kernel and its copy back
  static constexpr absl::Duration kShortest = absl::Microseconds(20);  // and the scheduler adds a few
  static constexpr absl::Duration kLongest = absl::Milliseconds(1);

  const absl::Time begin_ = MonotonicNow();
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_BACKOFF_H_
