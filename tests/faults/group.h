// A whole job as processes: agents with failpoints, a training process, an engine for every rollout. What happens to it
// and what it serves.
//
// Every process can be killed, stopped and started again by itself. Not thread-safe.
#ifndef WSYNC_TESTS_FAULTS_GROUP_H_
#define WSYNC_TESTS_FAULTS_GROUP_H_

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/cli/local_cluster.h"
#include "tests/faults/child_process.h"
#include "tests/faults/environment.h"
#include "tests/faults/failpoint_control.h"
#include "tests/faults/fault_model.h"

namespace wsync::faults {

struct GroupOptions {
  int rollouts = 2;
  cli::ConfigFlags trainer_flags;
  cli::ConfigFlags rollout_flags;
  std::string listen_host = "127.0.0.1";
  std::map<int, int> network_of;  // as LocalCluster's
};

// The training process's answer to one publish.
struct Published {
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string message;  // with the replicas that were left out
  absl::Duration took;
  absl::Time at;
  uint64_t epoch = 0;                               // in which it was accepted; 0: it was not
  std::map<std::string, v1::OutcomeCode> outcomes;  // of each replica, if it was committed
  bool ok() const { return code == absl::StatusCode::kOk; }
  bool ByAll() const {
    return ok() && std::all_of(outcomes.begin(), outcomes.end(),
                               [](const auto& outcome) { return outcome.second == v1::OUTCOME_APPLIED; });
  }
};

struct Content {
  uint64_t version = 0;
  bool paused = false;
  bool torn = false;
  std::string name;
};

// What an engine may hold: one of these versions (0: none yet), whole and in use. Else it is paused, if it may be, and
// said to be torn, if it may be that.
struct Allowed {
  std::vector<uint64_t> versions;
  bool paused = false;
  bool torn = false;
};

class Group {
 public:
  ~Group();
  // Waits until every rollout is ready. The weights of version V are those of seed V.
  static absl::StatusOr<std::unique_ptr<Group>> Start(GroupOptions options);

  cli::LocalCluster& agents() { return *agents_; }
  ChildProcess& trainer() { return *trainer_; }
  ChildProcess& engine(int rollout) { return *engines_[rollout]; }
  int rollouts() const { return options_.rollouts; }
  // Each instead of the one that was; `told` is its first command.
  absl::Status StartTrainerProcess(const std::string& told = "");
  absl::Status StartEngine(int rollout, const std::string& told = "");

  // `agent`: `trainer` or `rollout-0`, ...
  int TimesFired(const std::string& agent, const std::string& failpoint) const {
    return faults::TimesFired(agents_->log_path(agent), failpoint);
  }

  void BeginPublish(uint64_t version);
  std::optional<Published> AwaitPublished(absl::Duration timeout);
  std::optional<Published> Publish(uint64_t version, absl::Duration timeout) {
    BeginPublish(version);
    return AwaitPublished(timeout);
  }

  // OK once all rollouts are ready (or torn, where nothing but the next version can mend them) and nothing is running.
  absl::Status AwaitReady(absl::Duration timeout);
  absl::StatusOr<Content> ContentOf(int rollout);
  absl::Status CheckContent(int rollout, const Allowed& allowed);
  absl::Status CheckContent(int rollout, const std::vector<uint64_t>& versions, bool may_be_torn) {
    return CheckContent(rollout, Allowed{versions, may_be_torn, may_be_torn});
  }
  // What the coordinator says of every replica is what its engine holds, and is allowed.
  absl::Status CheckStatus(const std::vector<Allowed>& allowed);
  absl::Status AwaitVersion(int rollout, uint64_t version, absl::Duration timeout);
  int64_t buckets() const { return oracle_.buckets(); }

 private:
  explicit Group(GroupOptions options) : options_(std::move(options)) {}
  absl::Status StartAll();
  bool IsReady(const v1::MemberStatus& member) const;

  GroupOptions options_;
  Oracle oracle_;
  std::unique_ptr<cli::LocalCluster> agents_;
  std::unique_ptr<ChildProcess> trainer_;
  std::vector<std::unique_ptr<ChildProcess>> engines_;
};

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_GROUP_H_
