#include "server/rpc/signals.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rpc/errno_text.h"

namespace wsync {
namespace {

// A shell or timeout(1) that signals both a process and its group means one signal.
constexpr absl::Duration kSameSignal = absl::Milliseconds(200);

// No destructors: whatever hangs is what the user wants to get out of. Nor the log, whose lock may be what hangs.
[[noreturn]] void EndAtOnce(int signal) {
  const std::string line =
      absl::StrCat(program_invocation_short_name, ": a second signal (", signal == SIGINT ? "SIGINT" : "SIGTERM",
                   "): ended at once, with exit code ", 128 + signal, "\n");
  (void)!write(STDERR_FILENO, line.data(), line.size());
  _exit(128 + signal);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SignalWatcher>> SignalWatcher::Create() {
  for (const int ignored : {SIGPIPE, SIGUSR1, SIGUSR2, SIGXFSZ}) std::signal(ignored, SIG_IGN);
  sigset_t taken;
  sigemptyset(&taken);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&taken, signal);
  std::signal(SIGHUP, SIG_DFL);  // nohup(1) leaves it ignored, and then it never comes
  pthread_sigmask(SIG_BLOCK, &taken, nullptr);
  const int signal_fd = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
  const int stop_fd = signal_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC);
  if (stop_fd < 0) {
    const int error = errno;
    if (signal_fd >= 0) close(signal_fd);
    return absl::InternalError(absl::StrCat("cannot watch for signals: ", ErrnoText(error)));
  }
  return std::unique_ptr<SignalWatcher>(new SignalWatcher(signal_fd, stop_fd));
}

SignalWatcher::SignalWatcher(int signal_fd, int stop_fd)
    : signal_fd_(signal_fd), stop_fd_(stop_fd), thread_([this] { Run(); }) {}

SignalWatcher::~SignalWatcher() {
  eventfd_write(stop_fd_, 1);
  thread_.join();
  close(signal_fd_);
  close(stop_fd_);
}

std::optional<int> SignalWatcher::WaitUntil(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (first_ == 0 && !hung_up_) {
    if (!changed_.WaitUntil(&mu_, deadline)) break;
  }
  if (first_ != 0) return first_;
  return std::exchange(hung_up_, false) ? std::optional(SIGHUP) : std::nullopt;
}

void SignalWatcher::Run() {
  pthread_setname_np(pthread_self(), "wsync-signals");
  pollfd sources[2] = {{.fd = signal_fd_, .events = POLLIN}, {.fd = stop_fd_, .events = POLLIN}};
  absl::Time asked = absl::InfiniteFuture();
  while (sources[1].revents == 0) {
    if (poll(sources, 2, -1) < 0) continue;  // EINTR
    signalfd_siginfo info;
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info)) continue;
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGHUP) {
      MutexLock lock(&mu_);
      hung_up_ = true;
      changed_.SignalAll();
      continue;
    }
    const absl::Time now = MonotonicNow();
    if (now >= asked + kSameSignal) EndAtOnce(signal);
    asked = std::min(asked, now);
    MutexLock lock(&mu_);
    first_ = signal;
    changed_.SignalAll();
  }
}

}  // namespace wsync
