#include "server/core/available_memory.h"

#include <fstream>
#include <limits>
#include <string>

namespace wsync {

int64_t AvailableMemory() {
  std::ifstream info("/proc/meminfo");
  std::string word;
  int64_t kib = 0;
  while (info >> word) {
    if (word == "MemAvailable:" && info >> kib) return kib * 1024;
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace wsync
