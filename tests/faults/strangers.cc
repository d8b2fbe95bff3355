#include "tests/faults/strangers.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "tests/faults/proxy.h"

namespace wsync::faults {
namespace {

constexpr char kListening[] = "0A";

std::set<std::string> SocketInodes(pid_t pid) {
  std::set<std::string> inodes;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/fd"), ignored)) {
    const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (target.rfind("socket:[", 0) == 0) inodes.insert(target.substr(8, target.size() - 9));
  }
  return inodes;
}

// "0100007F:1D2E" of /proc/net/tcp, or the 32 digits of tcp6. Any address is reached as the local one.
std::string AddressOf(const std::string& text) {
  const size_t colon = text.find(':');
  uint32_t host = 0;
  unsigned port = 0;
  std::sscanf(text.c_str() + colon + 1, "%X", &port);
  if (colon == 8) std::sscanf(text.c_str(), "%8X", &host);
  const in_addr address{.s_addr = host == 0 ? htonl(INADDR_LOOPBACK) : host};
  char name[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &address, name, sizeof(name));
  return absl::StrCat(name, ":", port);
}

}  // namespace

const std::vector<std::string>& Greetings() {
  static const auto* const greetings = new std::vector<std::string>{
      "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
      "",  // a port probe
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + std::string("\xff\xff\xff\x04\x00\x00\x00\x00\x00", 9),
      std::string(100'000, '\0'),
      "SSH-2.0-OpenSSH_9.2\r\n"};
  return *greetings;
}

std::vector<std::string> ListeningAddresses(pid_t pid) {
  const std::set<std::string> inodes = SocketInodes(pid);
  std::vector<std::string> addresses;
  for (const char* table : {"tcp", "tcp6"}) {
    std::ifstream lines(absl::StrCat("/proc/", pid, "/net/", table));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream fields(line);
      std::string slot, local, remote, state, queues, timer, retransmits, uid, timeout, inode;
      fields >> slot >> local >> remote >> state >> queues >> timer >> retransmits >> uid >> timeout >> inode;
      if (state == kListening && inodes.contains(inode)) addresses.push_back(AddressOf(local));
    }
  }
  return addresses;
}

void Greet(const std::string& address, int times, std::vector<int>* connections) {
  for (const std::string& greeting : Greetings()) {
    for (int i = 0; i < times; ++i) {
      const int fd = ConnectTcp(address);
      if (fd < 0) continue;
      (void)!send(fd, greeting.data(), greeting.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      connections->push_back(fd);
    }
  }
}

}  // namespace wsync::faults
