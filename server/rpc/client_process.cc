#include "server/rpc/client_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wsync {

absl::StatusOr<std::unique_ptr<ClientProcess>> ClientProcess::Open(int64_t pid) {
  const auto no_such_process = [pid] {
    return absl::InvalidArgumentError(absl::StrCat("there is no process ", pid,
                                                   " here: give the pid of the process whose memory it is, and let it ",
                                                   "share a pid namespace with the agent"));
  };
  if (pid <= 0 || pid > INT32_MAX) return no_such_process();
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0));
  if (fd < 0 && errno != ENOSYS && errno != EPERM) return no_such_process();
  std::unique_ptr<ClientProcess> process(new ClientProcess(pid, fd));
  if (!process->Alive()) return no_such_process();
  return process;
}

ClientProcess::~ClientProcess() {
  if (pidfd_ >= 0) close(pidfd_);
}

bool ClientProcess::Alive() const {
  if (pidfd_ < 0) return kill(static_cast<pid_t>(pid_), 0) == 0 || errno == EPERM;
  pollfd exited{pidfd_, POLLIN, 0};
  return poll(&exited, 1, 0) == 0;  // readable once the process has ended
}

}  // namespace wsync
