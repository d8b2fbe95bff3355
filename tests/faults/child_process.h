// A child process that is talked to in lines: commands to its stdin, what it says from its stdout.
//
// Ends with the object (SIGKILL) and with this process. Not thread-safe.
#ifndef WSYNC_TESTS_FAULTS_CHILD_PROCESS_H_
#define WSYNC_TESTS_FAULTS_CHILD_PROCESS_H_

#include <sys/types.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wsync::faults {

class ChildProcess {
 public:
  // `words[0]` is a binary beside this one.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(std::vector<std::string> words);
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  void Tell(const std::string& line);
  // The next line that begins with `word`; lines before it are dropped. nullopt: none came in time, or the child is
  // gone.
  std::optional<std::string> Await(const std::string& word, absl::Duration timeout);
  // A line that begins with `word` has come and was not awaited yet.
  bool Said(const std::string& word);
  // It cried "silently-torn", at any time: such a line is never dropped.
  bool Cried();
  void Forget();  // what it said so far
  void Kill();    // SIGKILL, and reaped
  void Signal(int signal);

 private:
  ChildProcess(pid_t pid, int in, int out) : pid_(pid), in_(in), out_(out) {}
  bool Read(absl::Duration timeout);  // what is there; false: the end of its output

  pid_t pid_;
  const int in_;   // of the child
  const int out_;  // of the child
  std::string partial_;
  std::deque<std::string> lines_;
  bool cried_ = false;
};

// Whether the process has ended (a zombie has), or was stopped by a signal.
bool HasEnded(pid_t pid);
bool HasStopped(pid_t pid);

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_CHILD_PROCESS_H_
