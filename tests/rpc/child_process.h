// A program under test: its output, its signals, its end. Every wait has a deadline.
#ifndef WSYNC_TESTS_RPC_CHILD_PROCESS_H_
#define WSYNC_TESTS_RPC_CHILD_PROCESS_H_

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/clock.h"

namespace wsync {

inline constexpr absl::Duration kChildWait = absl::Seconds(30);  // sanitizers on a busy machine start slowly

class ChildProcess {
 public:
  explicit ChildProcess(const std::vector<std::string>& command) {
    int pipe_fds[2];
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) return;
    output_fd_ = pipe_fds[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], STDERR_FILENO);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fds[1]);
  }
  ~ChildProcess() {
    if (pid_ > 0) {
      Signal(SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    if (output_fd_ >= 0) close(output_fd_);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  void Signal(int number) const { kill(pid_, number); }

  // Reads until `text` was printed; false when the program closed its output or too much time passed.
  bool WaitForOutput(const std::string& text) {
    const absl::Time deadline = MonotonicNow() + kChildWait;
    while (output_.find(text) == std::string::npos) {
      if (!ReadSome(deadline)) return false;
    }
    return true;
  }
  // The exit code, or minus the signal that ended it, or -1000 when it does not end in time.
  int WaitForExit() {
    const absl::Time deadline = MonotonicNow() + kChildWait;
    while (ReadSome(deadline)) continue;
    const int end_fd = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
    pollfd end = {.fd = end_fd, .events = POLLIN};
    const bool ended = poll(&end, 1, Remaining(deadline)) == 1;
    close(end_fd);
    if (!ended) return -1000;
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  const std::string& output() const { return output_; }

 private:
  static int Remaining(absl::Time deadline) {
    return static_cast<int>(std::max<int64_t>(0, absl::ToInt64Milliseconds(deadline - MonotonicNow())));
  }
  bool ReadSome(absl::Time deadline) {
    pollfd readable = {.fd = output_fd_, .events = POLLIN};
    if (poll(&readable, 1, Remaining(deadline)) != 1) return false;
    char block[4096];
    const ssize_t got = read(output_fd_, block, sizeof(block));
    if (got <= 0) return false;
    output_.append(block, static_cast<size_t>(got));
    return true;
  }

  pid_t pid_ = -1;
  int output_fd_ = -1;
  std::string output_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_RPC_CHILD_PROCESS_H_
