#include "client/cli/peer_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr absl::Duration kEndTimeout = absl::Seconds(5);  // to give back tens of gigabytes
constexpr char kSelf[] = "/proc/self/exe";

}  // namespace

absl::StatusOr<std::unique_ptr<PeerProcess>> PeerProcess::Start(std::string name, std::vector<std::string> arguments) {
  int to[2], from[2];
  if (pipe2(to, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "cannot make a pipe");
  if (pipe2(from, O_CLOEXEC) != 0) {
    const absl::Status status = absl::ErrnoToStatus(errno, "cannot make a pipe");
    close(to[0]);
    close(to[1]);
    return status;
  }
  std::vector<char*> argv = {const_cast<char*>("wsync")};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {  // only async-signal-safe calls: other threads may hold locks
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(to[0], STDIN_FILENO);
    dup2(from[1], STDOUT_FILENO);
    execv(kSelf, argv.data());
    _exit(127);
  }
  const int error = errno;
  close(to[0]);
  close(from[1]);
  if (pid > 0) return std::unique_ptr<PeerProcess>(new PeerProcess(std::move(name), pid, to[1], from[0]));
  close(to[1]);
  close(from[0]);
  return absl::ErrnoToStatus(error, absl::StrCat("cannot start ", name));
}

PeerProcess::~PeerProcess() {
  close(to_);
  close(from_);
  const absl::Time deadline = MonotonicNow() + kEndTimeout;
  while (waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (MonotonicNow() > deadline) kill(pid_, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

absl::Status PeerProcess::Order(const std::string& line) {
  const std::string text = line + "\n";
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t n = write(to_, text.data() + sent, text.size() - sent);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::UnavailableError(absl::StrCat(name_, " (pid ", pid_, ") does not take orders any more"));
    sent += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<nlohmann::json> PeerProcess::Hear(absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  size_t end = 0;
  while ((end = heard_.find('\n')) == std::string::npos) {
    pollfd waiting{from_, POLLIN, 0};
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - MonotonicNow());
    const int ready = poll(&waiting, 1, static_cast<int>(std::max<int64_t>(0, left_ms)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready == 0) {
      return absl::DeadlineExceededError(absl::StrCat(name_, " said nothing for ", absl::FormatDuration(timeout)));
    }
    char buffer[4096];
    const ssize_t n = read(from_, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return absl::UnavailableError(absl::StrCat(name_, " (pid ", pid_, ") ended"));
    heard_.append(buffer, static_cast<size_t>(n));
  }
  const std::string line = heard_.substr(0, end);
  heard_.erase(0, end + 1);
  nlohmann::json said = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (said.is_discarded() || !said.is_object()) return absl::InternalError(absl::StrCat(name_, " said '", line, "'"));
  if (said.contains("error")) return absl::InternalError(absl::StrCat(name_, ": ", said.value("error", "")));
  return said;
}

}  // namespace wsync::cli
