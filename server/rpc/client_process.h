// The process at the other end of the local API, by identity and not by number: a pid that was given to somebody else
// counts as dead. Thread-safe.
#ifndef WSYNC_SERVER_RPC_CLIENT_PROCESS_H_
#define WSYNC_SERVER_RPC_CLIENT_PROCESS_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wsync {

// How often an agent looks: what a dead process leaves behind is stopped well within the 500 ms that matter, for a poll
// that costs one system call.
inline constexpr absl::Duration kClientProcessPoll = absl::Milliseconds(200);

class ClientProcess {
 public:
  // INVALID_ARGUMENT: no such process in this agent's pid namespace.
  static absl::StatusOr<std::unique_ptr<ClientProcess>> Open(int64_t pid);
  ~ClientProcess();
  ClientProcess(const ClientProcess&) = delete;
  ClientProcess& operator=(const ClientProcess&) = delete;
  // False once it has exited, also as a zombie. Never blocks.
  bool Alive() const;
  int64_t pid() const { return pid_; }

 private:
  ClientProcess(int64_t pid, int pidfd) : pid_(pid), pidfd_(pidfd) {}
  int64_t pid_;
  int pidfd_;  // -1: the kernel has none; the number is all we have
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CLIENT_PROCESS_H_
