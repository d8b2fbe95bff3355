// A child process that takes orders on its stdin and tells what happened on its stdout, one line of JSON each: the
// feeders and engines of a benchmark, which are processes of their own because a user's are.
//
// The child is this executable with other arguments. It ends with the PeerProcess, and with this process however that
// dies. One thread.
#ifndef WSYNC_CLIENT_CLI_PEER_PROCESS_H_
#define WSYNC_CLIENT_CLI_PEER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wsync::cli {

class PeerProcess {
 public:
  // `name` is for messages. Its stderr is ours.
  static absl::StatusOr<std::unique_ptr<PeerProcess>> Start(std::string name, std::vector<std::string> arguments);
  ~PeerProcess();  // closes its stdin, by which it ends; kills it where that does not help

  absl::Status Order(const std::string& line);
  // The next thing it says. INTERNAL: {"error": ...}, with the text; UNAVAILABLE: it ended; DEADLINE_EXCEEDED.
  absl::StatusOr<nlohmann::json> Hear(absl::Duration timeout);
  pid_t pid() const { return pid_; }

 private:
  PeerProcess(std::string name, pid_t pid, int to, int from)
      : name_(std::move(name)), pid_(pid), to_(to), from_(from) {}

  const std::string name_;
  const pid_t pid_;
  const int to_;
  const int from_;
  std::string heard_;  // not yet a whole line
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_PEER_PROCESS_H_
