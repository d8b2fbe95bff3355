// Waiting for the GPU without burning a core: tight at first, then in sleeps of a thousandth of what was waited
// already.
//
// Short work is seen at once; a transfer of 100 ms is noticed 0.1 ms late; a wait of seconds costs a thousand looks a
// second. One waiting thread's own.
#ifndef WSYNC_SERVER_BACKEND_CUDA_BACKOFF_H_
#define WSYNC_SERVER_BACKEND_CUDA_BACKOFF_H_

#include <algorithm>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/core/clock.h"

namespace wsync::cuda {

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
    absl::SleepFor(std::min(deadline - now, std::clamp(waited / 1000, kShortest, kLongest)));
    return true;
  }

 private:
  static constexpr absl::Duration kSpin = absl::Microseconds(50);      // a small kernel and its copy back
  static constexpr absl::Duration kShortest = absl::Microseconds(20);  // the scheduler makes it about 75
  static constexpr absl::Duration kLongest = absl::Milliseconds(1);

  const absl::Time begin_ = MonotonicNow();
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_BACKOFF_H_
