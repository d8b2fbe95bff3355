// What both daemons' main() share: flags, config, logging, signals, a graceful end.
#ifndef WSYNC_SERVER_RPC_DAEMON_H_
#define WSYNC_SERVER_RPC_DAEMON_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace google::protobuf {
class Message;
}

namespace wsync {

// A started daemon.
class Daemon {
 public:
  virtual ~Daemon() = default;
  // Ends it: drain what runs (bounded by `grace`), leave the group, release memory.
  virtual void Stop(absl::Duration grace) = 0;
  // One line for people once it is up: "listening on unix:///run/wsync/trainer.sock, coordinator on 127.0.0.1:7470".
  virtual std::string Banner() const = 0;
  // Not OK: only a new process can go on. One thread, a few times a second; never blocks.
  virtual absl::Status Health() const { return absl::OkStatus(); }
};

// The exit code of a daemon whose Health was not OK (EX_TEMPFAIL): its supervisor is to start it again.
inline constexpr int kExitForRestart = 75;

struct DaemonSpec {
  std::string name;                   // "wsync-trainer"
  std::string component;              // "trainer"
  std::string description;            // for --help
  std::string examples;               // for --help
  google::protobuf::Message* config;  // an empty TrainerConfig or RolloutConfig; filled before `start`
  std::function<absl::StatusOr<std::unique_ptr<Daemon>>()> start;
};

// Parses argv (--config FILE, --check-config, --version, --help, one flag per config key), loads the config, starts,
// waits for SIGTERM or SIGINT, stops. First signal: graceful; second: exits at once with 128+signal. SIGHUP opens the
// log file anew. See signals.h for the others.
// Returns main's exit code: 0, 1 error, 2 usage or bad config. When the daemon's Health is not OK the process ends with
// kExitForRestart within 3 s, after what it can still say goodbye to; whatever hangs in it does not hold that up.
int RunDaemon(int argc, char** argv, const DaemonSpec& spec);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_DAEMON_H_
