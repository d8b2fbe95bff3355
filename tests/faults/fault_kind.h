// What can go wrong at a failpoint: the numbers that travel in libfiu's `failnum`.
#ifndef WSYNC_TESTS_FAULTS_FAULT_KIND_H_
#define WSYNC_TESTS_FAULTS_FAULT_KIND_H_

#include <cstdint>

namespace wsync {

enum class Fault : uint8_t {
  kNone = 0,
  kError = 1,    // the step fails with the status code that is the argument
  kKill = 2,     // SIGKILL; argument: milliseconds before, in which this thread alone stands still
  kStop = 3,     // SIGSTOP, until somebody sends SIGCONT; argument as above
  kDelay = 4,    // argument: milliseconds
  kExit = 5,     // at once, without a goodbye; argument: the code
  kHang = 6,     // this thread stands still for ever, the others go on
  kCorrupt = 7,  // argument: number of the bit that flips
};

}  // namespace wsync

#endif  // WSYNC_TESTS_FAULTS_FAULT_KIND_H_
