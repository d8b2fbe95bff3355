// What a process holds, from /proc.
#ifndef WSYNC_TESTS_FAULTS_PROCESS_FACTS_H_
#define WSYNC_TESTS_FAULTS_PROCESS_FACTS_H_

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

namespace wsync::faults {

struct ProcessFacts {
  int64_t descriptors = 0;
  int64_t threads = 0;
  int64_t resident_bytes = 0;  // anonymous: its own
};

inline ProcessFacts FactsOf(pid_t pid) {
  ProcessFacts facts;
  const std::string base = "/proc/" + std::to_string(pid);
  std::error_code ignored;
  const auto descriptors = std::filesystem::directory_iterator(base + "/fd", ignored);
  facts.descriptors = std::distance(begin(descriptors), end(descriptors));
  std::ifstream status(base + "/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream fields(line);
    std::string key;
    int64_t value = 0;
    fields >> key >> value;
    if (key == "Threads:") facts.threads = value;
    if (key == "RssAnon:") facts.resident_bytes = value << 10;
  }
  return facts;
}

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_PROCESS_FACTS_H_
