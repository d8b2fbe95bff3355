// What an armed failpoint does. Linked into the test daemons only.
//
// Armed by libfiu's remote control: a command in the pipe $WSYNC_FAILPOINT_FIFO-<pid>.in, or one per line in
// $WSYNC_FAILPOINTS before the process starts, e.g. "enable name=rollout.commit,failnum=2,onetime". failnum is a Fault,
// failinfo its argument. What fires is said on stderr first, so that a test can see that it did.
#include "server/core/failpoint.h"

#include <fiu-control.h>
#include <fiu.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/faults/fault_kind.h"

namespace wsync {
namespace {

bool Arm() {
  fiu_init(0);
  if (const char* commands = std::getenv("WSYNC_FAILPOINTS")) {
    for (const std::string& command : std::vector<std::string>(absl::StrSplit(commands, '\n', absl::SkipEmpty()))) {
      char* error = nullptr;
      if (fiu_rc_string(command.c_str(), &error) == 0) continue;
      std::fprintf(stderr, "WSYNC_FAILPOINTS: '%s': %s\n", command.c_str(), error == nullptr ? "?" : error);
      std::abort();
    }
  }
  const char* fifo = std::getenv("WSYNC_FAILPOINT_FIFO");
  if (fifo == nullptr || fiu_rc_fifo(fifo) == 0) return true;
  std::perror("WSYNC_FAILPOINT_FIFO");
  std::abort();
}

// Before main, and so before any thread that could hit one.
const bool armed = Arm();

int Fire(const char* name, intptr_t* argument) {
  if (!armed) return 0;  // read here, so that the initializer is not dropped
  const int kind = fiu_fail(name);
  if (kind == 0) return 0;
  *argument = reinterpret_cast<intptr_t>(fiu_failinfo());
  const std::string said = absl::StrCat("failpoint ", name, " fired\n");
  (void)!write(STDERR_FILENO, said.data(), said.size());  // one call: whole, though others write there, too
  return kind;
}

}  // namespace

absl::Status HitFailpoint(const char* name) {
  intptr_t argument = 0;
  switch (static_cast<Fault>(Fire(name, &argument))) {
    case Fault::kNone:
    case Fault::kCorrupt:
      return absl::OkStatus();
    case Fault::kError:
      return absl::Status(static_cast<absl::StatusCode>(argument), absl::StrCat("injected at ", name));
    case Fault::kKill:
      usleep(static_cast<useconds_t>(argument) * 1000);
      raise(SIGKILL);
      break;
    case Fault::kStop:
      usleep(static_cast<useconds_t>(argument) * 1000);
      raise(SIGSTOP);  // to this thread: sent to the process, this one might go on for a moment
      break;
    case Fault::kDelay:
      usleep(static_cast<useconds_t>(argument) * 1000);
      break;
    case Fault::kExit:
      _exit(static_cast<int>(argument));
    case Fault::kHang:
      while (true) pause();
  }
  return absl::OkStatus();
}

absl::Status HitBucketFailpoint(const char* name, int64_t bucket, int64_t count) {
  absl::Status result;
  if (bucket == 0) result.Update(HitFailpoint(absl::StrCat(name, ".first").c_str()));
  if (bucket == count / 2) result.Update(HitFailpoint(absl::StrCat(name, ".middle").c_str()));
  if (bucket == count - 1) result.Update(HitFailpoint(absl::StrCat(name, ".last").c_str()));
  return result;
}

void HitCorruption(const char* name, std::byte* data, int64_t bytes) {
  intptr_t bit = 0;
  if (bytes == 0 || static_cast<Fault>(Fire(name, &bit)) != Fault::kCorrupt) return;
  const int64_t at = bit % (bytes * 8);
  data[at / 8] ^= std::byte{1} << (at % 8);
}

}  // namespace wsync
