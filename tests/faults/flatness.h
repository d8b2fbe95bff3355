// What processes held when they had warmed up, and that they do not hold more later.
#ifndef WSYNC_TESTS_FAULTS_FLATNESS_H_
#define WSYNC_TESTS_FAULTS_FLATNESS_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "tests/faults/process_facts.h"

namespace wsync::faults {

class Flatness {
 public:
  // `settled`: versions after a start from which on a process may not grow by more than kSettledSlack.
  explicit Flatness(int64_t settled = 500) : settled_(settled) {}
  static constexpr int64_t kSettledSlack = 4 << 20;
  // Of the process `name` after `version`. A process that was started again warms up again. Reports a gtest failure.
  // `slack`: how much it may grow once it has settled.
  void Look(const std::string& name, pid_t pid, int64_t version, int64_t slack = kSettledSlack);
  // Of something that is no process's own ("GPU 0"), compared with the largest of its warm-up.
  void LookAtBytes(const std::string& name, int64_t bytes, int64_t version);
  void Print() const;  // SOAK|name|first -> last

 private:
  struct Process {
    pid_t pid = 0;
    int64_t since = 0;
    std::optional<ProcessFacts> base;
    std::optional<int64_t> settled_bytes;
  };
  const int64_t settled_;
  std::map<std::string, Process> processes_;
  std::map<std::string, int64_t> bytes_;
  std::map<std::string, std::string> last_;
};

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_FLATNESS_H_
