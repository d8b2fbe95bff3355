// The rules of the commit protocol, checked on what goes into the coordinator and what comes out of it, and on what the
// sinks really serve. Knows nothing of how the coordinator decides.
#ifndef WSYNC_TESTS_CORE_SIMULATION_CHECKER_H_
#define WSYNC_TESTS_CORE_SIMULATION_CHECKER_H_

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/coordinator.h"
#include "server/core/events.h"
#include "tests/core/simulation.h"

namespace wsync::sim {

class Checker {
 public:
  Checker(const CoordinatorOptions& options, absl::Duration stage_budget, Counts& counts)
      : options_(options), stage_budget_(stage_budget), counts_(counts) {}

  void CoordinatorStarts();  // a new life: no members, no epochs
  void Content(uint64_t version, const Hash128& digest) { content_[version] = digest; }
  void Before(absl::Time now, const Event& event);
  void After(absl::Time now, const Actions& actions);
  void Retained(const ServedVersion& retained) { retained_ = retained; }
  void Served(const std::string& sink, uint64_t epoch, const ServedVersion& former, const ServedVersion& now_serving);
  void Paused(absl::Duration pause);  // of the coordinator: its bounds move

  const std::string& violation() const { return violation_; }
  void Violate(std::string what);
  const ServedVersion& latest() const { return latest_; }
  bool publishing() const { return !publishes_.empty(); }

 private:
  struct LiveMember {
    std::string replica;
    uint64_t epoch = 0;  // of the round it was asked into and is not out of yet
    bool committed = false;
  };
  struct Attempt {
    uint64_t version = 0;
    absl::Time deadline;                           // until then nobody may be passed over for being slow
    std::map<MemberId, std::string> participants;  // and their replicas
    std::map<MemberId, Hash128> staged;
    std::set<MemberId> committed;
    std::set<MemberId> engines_gone;  // that had everything
    bool catch_up = false;
  };
  struct UsedSession {
    std::string token;
    uint64_t epoch = 0;
    std::vector<MemberId> members;
    std::set<MemberId> applied;
    bool sent = false;
    bool broken = false;  // something was called off in it
    // A former coordinator's epochs had the same numbers, and its members may still answer them.
    bool Has(MemberId member, uint64_t of_epoch) const {
      return of_epoch == epoch && std::find(members.begin(), members.end(), member) != members.end();
    }
  };
  struct Publish {
    absl::Time since;
    std::optional<absl::Time> begun;
  };
  void OnEvent(absl::Time now, const event::Publish& event);
  void OnEvent(absl::Time now, const event::Joined& event);
  void OnEvent(absl::Time now, const event::HeartbeatSeen& event);
  void OnEvent(absl::Time now, const event::Staged& event);
  void OnEvent(absl::Time, const event::SourceSent& event) { session_.sent |= event.epoch == session_.epoch; }
  void OnEvent(absl::Time now, const event::Applied& event);
  void OnEvent(absl::Time now, const event::Failed& event);
  void OnEvent(absl::Time, const event::Left& event) { Gone(event.member); }
  void OnEvent(absl::Time, const event::Lost& event) { Gone(event.member); }
  template <typename Other>
  void OnEvent(absl::Time, const Other&) {}

  void OnAction(absl::Time now, const action::SendWelcome& action);
  void OnAction(absl::Time, const action::SendCatalog& action) { MustBeLive(action.member, "catalog"); }
  void OnAction(absl::Time now, const action::SendBegin& action);
  void OnAction(absl::Time now, const action::SendCommit& action);
  void OnAction(absl::Time now, const action::SendAbort& action);
  void OnAction(absl::Time, const action::Refuse& action) { Gone(action.member); }
  void OnAction(absl::Time now, const action::Disconnect& action);
  void OnAction(absl::Time now, const action::StartSource& action);
  void OnAction(absl::Time, const action::CancelSource& action) { session_.broken |= action.epoch == session_.epoch; }
  void OnAction(absl::Time now, const action::PublishDone& action);
  template <typename Other>
  void OnAction(absl::Time, const Other&) {}

  void Answered(MemberId member, uint64_t epoch);
  void Gone(MemberId member) { members_.erase(member); }
  bool MustBeLive(MemberId member, const char* message);
  void Decided(const ServedVersion& content);
  void CheckDecision(absl::Time now, uint64_t epoch);
  void CheckKeptSession();

  const CoordinatorOptions& options_;
  absl::Duration stage_budget_;
  Counts& counts_;
  std::string violation_;
  std::map<uint64_t, Hash128> content_;  // what the trainer last published as this version
  std::map<uint64_t, Hash128> decided_;
  ServedVersion latest_;
  ServedVersion retained_;
  // of this life of the coordinator
  std::map<MemberId, LiveMember> members_;
  std::map<MemberId, std::string> joining_;
  std::map<uint64_t, Attempt> attempts_;  // by epoch
  uint64_t last_epoch_ = 0;
  UsedSession session_;                             // of the last epoch
  std::optional<std::vector<MemberId>> kept_with_;  // the session was used before, by these
  std::map<uint64_t, Publish> publishes_;           // unanswered, by version
  std::set<uint64_t> deciding_;                     // epochs whose commits were sent in this step
};

}  // namespace wsync::sim

#endif  // WSYNC_TESTS_CORE_SIMULATION_CHECKER_H_
