#include "tests/faults/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync::faults {

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(std::vector<std::string> words) {
  words[0] = std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/" + words[0];
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int to[2], from[2];
  if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {  // only async-signal-safe calls
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(to[0], STDIN_FILENO);
    dup2(from[1], STDOUT_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(to[0]);
  close(from[1]);
  if (pid < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot start ", words[0]));
  signal(SIGPIPE, SIG_IGN);  // a child that is gone is an answer that does not come
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid, to[1], from[0]));
}

ChildProcess::~ChildProcess() {
  Kill();
  close(in_);
  close(out_);
}

void ChildProcess::Tell(const std::string& line) {
  const std::string whole = line + "\n";
  (void)!write(in_, whole.data(), whole.size());
}

bool ChildProcess::Read(absl::Duration timeout) {
  pollfd readable{out_, POLLIN, 0};
  if (poll(&readable, 1, static_cast<int>(std::max<int64_t>(0, absl::ToInt64Milliseconds(timeout)))) <= 0) return true;
  char buffer[4096];
  const ssize_t got = read(out_, buffer, sizeof(buffer));
  if (got <= 0) return false;
  partial_.append(buffer, static_cast<size_t>(got));
  for (size_t end = 0; (end = partial_.find('\n')) != std::string::npos;) {
    lines_.push_back(partial_.substr(0, end));
    cried_ |= absl::StartsWith(lines_.back(), "silently-torn");
    partial_.erase(0, end + 1);
  }
  return true;
}

std::optional<std::string> ChildProcess::Await(const std::string& word, absl::Duration timeout) {
  const absl::Time deadline = MonotonicNow() + timeout;
  while (true) {
    while (!lines_.empty()) {
      const std::string line = std::move(lines_.front());
      lines_.pop_front();
      if (absl::StartsWith(line, word)) return line;
    }
    const absl::Duration left = deadline - MonotonicNow();
    if (left <= absl::ZeroDuration() || !Read(left)) return std::nullopt;
  }
}

bool ChildProcess::Said(const std::string& word) {
  Read(absl::ZeroDuration());
  return std::any_of(lines_.begin(), lines_.end(),
                     [&](const std::string& line) { return absl::StartsWith(line, word); });
}

bool ChildProcess::Cried() {
  Read(absl::ZeroDuration());
  return cried_;
}

void ChildProcess::Forget() {
  Read(absl::ZeroDuration());
  lines_.clear();
}

void ChildProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void ChildProcess::Signal(int signal) { kill(pid_, signal); }

namespace {

// The third field of /proc/<pid>/stat; 'X' once there is no such process.
char StateOf(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string text;
  if (!std::getline(file, text)) return 'X';
  const size_t name_end = text.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= text.size() ? 'X' : text[name_end + 2];
}

}  // namespace

bool HasEnded(pid_t pid) {
  const char state = StateOf(pid);
  return state == 'X' || state == 'Z';
}

bool HasStopped(pid_t pid) { return StateOf(pid) == 'T'; }

}  // namespace wsync::faults
