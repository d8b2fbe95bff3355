// How long the rollout's tests wait for anything: a test that waits this long has failed.
#ifndef WSYNC_TESTS_ROLLOUT_TESTING_H_
#define WSYNC_TESTS_ROLLOUT_TESTING_H_

#include "absl/time/time.h"

namespace wsync {

inline constexpr absl::Duration kPatience = absl::Seconds(20);

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_TESTING_H_
