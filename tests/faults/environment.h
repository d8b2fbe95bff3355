// What the environment says to a test.
#ifndef WSYNC_TESTS_FAULTS_ENVIRONMENT_H_
#define WSYNC_TESTS_FAULTS_ENVIRONMENT_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "absl/time/time.h"

namespace wsync::faults {

inline int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

// Limits hold on two busy cores; a sanitizer build multiplies them by WSYNC_FAULT_TIME_FACTOR.
inline absl::Duration Scaled(absl::Duration limit) {
  return limit * std::max<int64_t>(1, FromEnvironment("WSYNC_FAULT_TIME_FACTOR", 1));
}

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_ENVIRONMENT_H_
