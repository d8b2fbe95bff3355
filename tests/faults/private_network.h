// A network of this process's own: a loopback and, over a veth pair, a second namespace. Nothing leaves it.
//
// Enter moves the process into it for good. Rules of the packet filter between the two are nftables'.
#ifndef WSYNC_TESTS_FAULTS_PRIVATE_NETWORK_H_
#define WSYNC_TESTS_FAULTS_PRIVATE_NETWORK_H_

#include <string>

#include "absl/status/status.h"

namespace wsync::faults {

class PrivateNetwork {
 public:
  static constexpr char kHere[] = "10.77.0.1";
  static constexpr char kThere[] = "10.77.0.2";

  // REQUIRES: called before the process has threads. PERMISSION_DENIED: namespaces cannot be made here, and why.
  static absl::Status Enter();
  // Of the other namespace, for setns.
  static int other();

  // Drops packets between the two: those that come here, those that go there; a percentage of them.
  static absl::Status Drop(int incoming_percent, int outgoing_percent);
  static absl::Status Heal() { return Drop(0, 0); }
};

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_PRIVATE_NETWORK_H_
