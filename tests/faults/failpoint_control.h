// Arms failpoints in running daemons (wsync-*-faults), by libfiu's pipes, and sees in their logs what fired.
//
// Call Prepare before any such daemon is started. Thread-safe.
#ifndef WSYNC_TESTS_FAULTS_FAILPOINT_CONTROL_H_
#define WSYNC_TESTS_FAULTS_FAILPOINT_CONTROL_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "tests/faults/fault_kind.h"

namespace wsync::faults {

// Puts into the environment where daemons that this process starts are to have their pipes.
void PrepareFailpoints();
// Removes the pipes that killed daemons left behind.
void RemoveFailpointPipes();

// A line of $WSYNC_FAILPOINTS, for a daemon that is to meet its fault while it starts.
std::string ArmCommand(const std::string& failpoint, Fault fault, int argument, bool once = true);
// Takes effect before it returns.
absl::Status ArmFailpoint(pid_t pid, const std::string& failpoint, Fault fault, int argument, bool once = true);
absl::Status DisarmFailpoint(pid_t pid, const std::string& failpoint);
// By what the daemon wrote into `log`.
int TimesFired(const std::string& log, const std::string& failpoint);

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_FAILPOINT_CONTROL_H_
