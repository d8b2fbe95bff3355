// The one clock of deadlines, ages and heartbeats. Wall-clock time appears only in logs and on screens.
#ifndef WSYNC_SERVER_CORE_CLOCK_H_
#define WSYNC_SERVER_CORE_CLOCK_H_

#include <chrono>

#include "absl/time/time.h"

namespace wsync {

// Steady time as an absl::Time with an arbitrary origin: comparable within one process only.
inline absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_CLOCK_H_
