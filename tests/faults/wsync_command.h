// The wsync command, as a user calls it.
#ifndef WSYNC_TESTS_FAULTS_WSYNC_COMMAND_H_
#define WSYNC_TESTS_FAULTS_WSYNC_COMMAND_H_

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"

namespace wsync::faults {

// Its exit code, or -1; what it printed on both streams in `output`. The program beside this one is taken.
inline int RunWsync(const std::string& arguments, std::string* output) {
  const std::string wsync = std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/wsync";
  std::FILE* pipe = popen(absl::StrCat(wsync, " ", arguments, " 2>&1 </dev/null").c_str(), "r");
  output->clear();
  if (pipe == nullptr) return -1;
  std::array<char, 4096> buffer;
  for (size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) output->append(buffer.data(), n);
  const int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_WSYNC_COMMAND_H_
