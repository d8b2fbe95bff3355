#include "tests/faults/private_network.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace wsync::faults {
namespace {

int other_namespace = -1;

absl::Status RunCommand(const std::string& command) {
  const int result = std::system((command + " 2>/dev/null").c_str());
  return result == 0 ? absl::OkStatus() : absl::PermissionDeniedError(absl::StrCat("'", command, "' failed"));
}

absl::Status Unshare() {
  if (unshare(CLONE_NEWNET) == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("no network namespace can be made here: errno ", errno));
}

std::string Rule(const char* direction, int percent) {
  if (percent == 0) return "";
  const std::string how = percent >= 100 ? "drop" : absl::StrCat("numgen random mod 100 \\< ", percent, " drop");
  return absl::StrCat(" && nft add rule inet faults ", direction, " ", how);
}

}  // namespace

// First the one that becomes the other, and back out of it by making the second.
absl::Status PrivateNetwork::Enter() {
  if (absl::Status status = Unshare(); !status.ok()) return status;
  other_namespace = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  if (absl::Status status = RunCommand("ip link set lo up"); !status.ok()) return status;
  if (absl::Status status = Unshare(); !status.ok()) return status;
  const int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  absl::Status status = RunCommand(absl::StrCat(
      "ip link set lo up && ip link add faults0 type veth peer name faults1 && ", "ip link set faults1 netns /proc/",
      getpid(), "/fd/", other_namespace, " && ip addr add ", kHere, "/24 dev faults0 && ip link set faults0 up"));
  if (!status.ok()) return status;
  if (setns(other_namespace, CLONE_NEWNET) != 0) return absl::PermissionDeniedError("setns");
  status = RunCommand(absl::StrCat("ip addr add ", kThere, "/24 dev faults1 && ip link set faults1 up"));
  if (setns(here, CLONE_NEWNET) != 0) return absl::PermissionDeniedError("setns");
  close(here);
  if (status.ok()) status = RunCommand("nft list tables");
  return status;
}

int PrivateNetwork::other() { return other_namespace; }

absl::Status PrivateNetwork::Drop(int incoming_percent, int outgoing_percent) {
  return RunCommand(absl::StrCat(
      "nft add table inet faults && nft delete table inet faults && nft add table inet faults && ",
      "nft 'add chain inet faults in { type filter hook input priority 0 ; }' && ",
      "nft 'add chain inet faults out { type filter hook output priority 0 ; }' && ",
      "nft add rule inet faults in iifname != faults0 accept && nft add rule inet faults out oifname != faults0 accept",
      Rule("in", incoming_percent), Rule("out", outgoing_percent)));
}

}  // namespace wsync::faults
