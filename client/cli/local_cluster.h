// One trainer agent and some rollout agents as real processes in a private directory: what demo and bench run on.
//
// The agents are the binaries that lie beside this one. Every process ends with the LocalCluster, and with this process
// however it dies (PR_SET_PDEATHSIG). Not thread-safe.
#ifndef WSYNC_CLIENT_CLI_LOCAL_CLUSTER_H_
#define WSYNC_CLIENT_CLI_LOCAL_CLUSTER_H_

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync::cli {

using ConfigFlags = std::vector<std::pair<std::string, std::string>>;  // "transfer.bucket_bytes" -> "64MiB"

class LocalCluster {
 public:
  struct Options {
    int rollouts = 2;
    ConfigFlags trainer_flags;
    ConfigFlags rollout_flags;
    std::vector<int> devices;   // GPUs of the trainer agent and of each rollout agent; empty: backend host
    bool keep = false;          // leave the directory with logs and sockets behind
    std::string binary_suffix;  // of the agents: tests run other builds of them
    // Where the coordinator listens, and where a rollout dials it or lives (a file descriptor of a network namespace)
    // when not there and here: for tests of broken networks.
    std::string listen_host = "127.0.0.1";
    std::map<int, std::string> coordinator_of;
    std::map<int, int> network_of;
  };
  // Starts all agents and waits until they answer. NOT_FOUND: no agent binaries beside this one. UNAVAILABLE: one ended
  // or did not answer in time; its last log lines are in the message.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(Options options);
  ~LocalCluster();

  const std::string& directory() const { return directory_; }
  void Keep() { options_.keep = true; }  // the directory survives: somebody should read the logs
  std::string coordinator() const { return coordinator_; }
  std::string trainer_socket() const;
  std::string rollout_socket(int rollout) const;
  void Dial(int rollout, const std::string& coordinator) {
    options_.coordinator_of[rollout] = coordinator;
  }  // from its next start
  pid_t trainer_pid() const { return trainer_pid_; }
  pid_t rollout_pid(int rollout) const { return rollout_pids_[rollout]; }

  void KillRollout(int rollout);  // SIGKILL, and reaped
  int StopRollout(int rollout);   // SIGTERM; its exit code, or -1 if it had to be killed
  absl::Status StartRollout(int rollout);
  absl::Status LaunchRollout(int rollout);  // as StartRollout, and does not wait until it answers
  void KillTrainer();                       // SIGKILL, and reaped
  absl::Status StartTrainer();
  absl::Status RestartTrainer() {
    KillTrainer();
    return StartTrainer();
  }
  absl::StatusOr<v1::JobStatus> Status() const;
  // Polls the status until `done` or UNAVAILABLE/DEADLINE_EXCEEDED with the last status' reason.
  absl::StatusOr<v1::JobStatus> WaitFor(const std::function<bool(const v1::JobStatus&)>& done, absl::Duration timeout,
                                        const std::string& what) const;
  // What the process holds now that is its own: resident memory less what it shares with its client process.
  static int64_t PrivateBytes(pid_t pid);
  std::string log_path(const std::string& agent) const;  // of "trainer", "rollout-0", ...

 private:
  explicit LocalCluster(Options options) : options_(std::move(options)) {}
  absl::Status StartAll();
  void AddDevice(size_t agent, ConfigFlags& flags) const;
  absl::StatusOr<pid_t> Spawn(const std::string& binary, const std::string& name, const ConfigFlags& flags,
                              int network = -1);
  std::string LogTail(const std::string& name) const;

  Options options_;
  std::string directory_;
  std::string binaries_;
  std::string coordinator_;
  pid_t trainer_pid_ = -1;
  std::vector<pid_t> rollout_pids_;
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_LOCAL_CLUSTER_H_
