#include "tests/faults/failpoint_control.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync::faults {
namespace {

constexpr absl::Duration kAnswerLimit = absl::Seconds(5);

// Each daemon adds its pid.
const std::string& Fifo() {
  static const std::string fifo = absl::StrCat("/tmp/wsync-fiu-", getpid());
  return fifo;
}

// libfiu opens the answering pipe once it has a reader, and answers "0" when the command was good.
absl::Status Control(pid_t pid, const std::string& command) {
  const std::string base = absl::StrCat(Fifo(), "-", pid);
  const int in = open((base + ".in").c_str(), O_RDWR | O_CLOEXEC);
  const int out = open((base + ".out").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  std::string answer;
  if (in >= 0 && out >= 0) {
    const std::string line = command + "\n";
    (void)!write(in, line.data(), line.size());
    const absl::Time deadline = MonotonicNow() + kAnswerLimit;
    while (answer.find('\n') == std::string::npos && MonotonicNow() < deadline) {
      pollfd readable{out, POLLIN, 0};
      poll(&readable, 1, 20);
      char buffer[256];
      const ssize_t got = read(out, buffer, sizeof(buffer));
      if (got > 0) answer.append(buffer, static_cast<size_t>(got));
      if (got == 0) usleep(1000);  // it has not opened its end yet
    }
  }
  if (in >= 0) close(in);
  if (out >= 0) close(out);
  if (answer.substr(0, 2) == "0\n") return absl::OkStatus();
  return absl::InternalError(absl::StrCat("process ", pid, " answered '", answer, "' to '", command, "'"));
}

}  // namespace

void PrepareFailpoints() { setenv("WSYNC_FAILPOINT_FIFO", Fifo().c_str(), 1); }

void RemoveFailpointPipes() {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/tmp", ignored)) {
    if (entry.path().string().rfind(Fifo() + "-", 0) == 0) std::filesystem::remove(entry.path(), ignored);
  }
}

std::string ArmCommand(const std::string& failpoint, Fault fault, int argument, bool once) {
  return absl::StrCat("enable name=", failpoint, ",failnum=", static_cast<int>(fault), ",failinfo=", argument,
                      once ? ",onetime" : "");
}

absl::Status ArmFailpoint(pid_t pid, const std::string& failpoint, Fault fault, int argument, bool once) {
  return Control(pid, ArmCommand(failpoint, fault, argument, once));
}

absl::Status DisarmFailpoint(pid_t pid, const std::string& failpoint) {
  return Control(pid, absl::StrCat("disable name=", failpoint));
}

int TimesFired(const std::string& log, const std::string& failpoint) {
  std::ifstream in(log);
  const std::string wanted = absl::StrCat("failpoint ", failpoint, " fired");
  int times = 0;
  for (std::string line; std::getline(in, line);) times += line == wanted;
  return times;
}

}  // namespace wsync::faults
