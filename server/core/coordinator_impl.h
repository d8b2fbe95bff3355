// The state behind Coordinator, and its concerns, one .cc file each: membership (coordinator.cc), what members say that
// they serve and who is to blame (belief.cc), the publish in flight (publish.cc) and whether it may be
// (publish_check.cc), catch-up of replicas that were left out (catch_up.cc). Included by those only.
//
// A step sets now_, collects actions in out_, and ends with Advance(), which does what time or the event made due.
#ifndef WSYNC_SERVER_CORE_COORDINATOR_IMPL_H_
#define WSYNC_SERVER_CORE_COORDINATOR_IMPL_H_

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/core/coordinator.h"
#include "server/core/fences.h"
#include "server/core/group.h"
#include "server/core/round.h"

namespace wsync {

// The version that the trainer asked for and has not got an answer about.
struct RunningPublish {
  enum class Stage : uint8_t { kChecking = 1, kWaiting, kRunning };
  uint64_t version = 0;
  Stage stage = Stage::kWaiting;
  absl::Time requested;
  absl::Time deadline;   // of kChecking and kWaiting
  absl::Time decide_by;  // no further attempt after this
  PlanInfo plan;
  uint64_t first_epoch = 0;  // of its first attempt, or of the check of its content
  int retries = 0;           // attempts repeated without anybody to blame
  bool decided = false;
  std::map<std::string, ReplicaOutcome> dropped;  // replicas that earlier attempts lost; not asked again
  std::map<std::string, ReplicaOutcome> absent;   // that took part, and were not ready when it was sent again
  std::optional<ServedVersion> content;           // known once released
  absl::Duration encode;
  absl::Time released, staged;
};

// The data-plane session of the last round. The next round of the same members goes on in it if all of them took all of
// that one: opening a session costs a backend up to half a second, a kept one nothing.
struct KeptSession {
  std::string token;
  std::vector<std::string> rank_tokens;  // of its members
  std::vector<MemberId> members;         // ranks 1, 2, ...
  uint64_t epoch = 0;                    // of the round that uses it, or used it last
  bool sent = false;                     // the source put everything on the wire
  bool applied = false;                  // every member took everything
  bool Serves(const std::vector<MemberId>& wanted) const {
    return sent && applied && !wanted.empty() && wanted == members;
  }
};

class Coordinator::Impl {
 public:
  Impl(CoordinatorOptions options, absl::Time now);
  Actions Step(absl::Time now, const Event& event);
  absl::Time NextDeadline() const;
  StatusSnapshot Snapshot(absl::Time now) const;

 private:
  // ---- coordinator.cc: events and membership
  void On(const event::CatalogRegistered& event);
  void On(const event::CatalogGone& event);
  void On(const event::Joined& event);
  void On(const event::ReadyChanged& event);
  void On(const event::HeartbeatSeen& event);
  void On(const event::Staged& event);
  void On(const event::Applied& event);
  void On(const event::Failed& event);
  void On(const event::Left& event);
  void On(const event::Lost& event);
  void On(const event::Tick&) {}
  // ---- belief.cc
  void On(const event::Unfence& event);
  // ---- publish.cc
  void On(const event::Publish& event);
  void On(const event::CallersGone& event);
  void On(const event::ContentChecked& event);
  void On(const event::SourceReleased& event);
  void On(const event::SourceSent& event);
  void On(const event::SourceFailed& event);

  void Advance();
  Member* Heard(MemberId id);
  void ChangeCatalog(const std::string& why);
  void AnnounceCatalog(const std::string& not_ready_reason);
  void LoseSilentMembers();
  void TellRounds(const std::vector<event::Lost>& losses);
  void LoseMember(MemberId id, const std::string& reason);
  void ListAsLost(MemberId id, const std::string& reason);
  static void NotePhase(Member& member, MemberPhase phase);
  void LeaveRound(Member& member);
  template <typename Call>
  void InRoundOf(MemberId member, Call call);
  void Take(Actions actions);
  void Log(action::Log::Severity severity, std::string text);

  // ---- belief.cc
  void Recall();
  void NoteClaim(Member& member, const ServedVersion& serving);
  bool Recalling() const;
  bool OthersRemain(const std::string& replica) const;
  bool Blame(const Round& round);
  void Fence(Member& member);

  // ---- publish.cc
  absl::Duration StageBudget() const;  // for the bytes of one version
  int64_t Needed() const;              // replicas, to decide
  bool Unreleased() const;
  bool Ticks() const;       // a publish whose weights may still be read
  bool StoodStill() const;  // so long that its callers may have given up
  void CallOff();
  absl::Status CheckPublish(uint64_t version) const;
  absl::Status OlderThanCommitted(uint64_t version) const;
  void MeetCommitted();
  std::vector<Group::Replica> Candidates() const;
  absl::Time Grace() const;
  absl::Time FormerGroupBack() const;
  void AdvancePublish();
  void StartAttempt();
  Round NewRound(const std::vector<Group::Replica>& replicas, uint64_t version, RoundOptions options);
  void BeginRound(const Round& round, bool encode);
  void StopSource(const absl::Status& reason);
  void KeepSession(const Round& round);
  void FollowPublish();
  void Decide();
  void LosePublish();
  void RestartPublish(bool blamed);
  void GiveUpPublish(const absl::Status& why);
  bool AllAreReady(const Round& round) const;
  void NoteAbsent();
  void NoteTorn(ReplicaOutcome& outcome) const;
  VersionReport Report() const;
  void FinishPublish();
  void NoteLeftOut(const ReplicaOutcome& outcome, uint64_t version);
  void AbortPublish(const absl::Status& why);
  void AnswerPublish(const absl::Status& status, VersionReport report);

  // ---- catch_up.cc
  struct Backoff {
    int failures = 0;
    absl::Time until;
  };
  bool CatchUpPossible() const;
  std::vector<Group::Replica> LaggingReplicas() const;
  absl::Time BackoffOf(const std::string& replica) const;
  absl::Time NextCatchUp() const;
  void StartCatchUp();
  void FollowCatchUp();
  void CancelCatchUp(const absl::Status& why);
  void RecordCatchUp(const ReplicaOutcome& outcome, uint64_t version);

  CoordinatorOptions options_;
  absl::Time now_;
  bool ticking_ = false;                           // since the step before
  absl::Duration still_;                           // how long nothing came, though a tick was due
  absl::Time stood_still_ = absl::InfinitePast();  // last, for longer than messages may lie unread
  absl::Time all_back_ = absl::InfinitePast();     // who left while we stood still has joined again by then
  absl::Time first_catalog_ = absl::InfiniteFuture();
  int64_t former_group_ = 0;  // sinks that an earlier coordinator had, as those say that joined since
  Actions out_;
  Group group_;
  Fences fences_;
  uint64_t epoch_ = 0;
  std::optional<PlanInfo> plan_;
  ServedVersion committed_;
  bool decided_ = false;    // committed_ is known by our own decision or the trainer's bytes, not recalled from members
  ServedVersion retained_;  // what the source could send again
  uint64_t source_epoch_ = 0;  // in which the source may still send; 0: none
  KeptSession session_;
  std::optional<RunningPublish> publish_;
  std::optional<Round> round_;     // the publish's
  std::optional<Round> catch_up_;  // in kApply it may run beside a publish
  bool catch_up_decided_ = false;
  std::map<std::string, Backoff> backoff_;  // by replica
  std::optional<VersionReport> last_report_;
  absl::Time last_report_time_;
  std::deque<StatusEvent> history_;
};

// What the sinks of a coordinator that was started again take to be back once they can be: by default their longest
// pause between two attempts is 2 s.
inline constexpr absl::Duration kRejoinGrace = absl::Milliseconds(2500);

inline constexpr uint64_t kLastVersion = UINT64_MAX - 1;  // after which there is a higher one to publish
inline constexpr char kNoCatalog[] = "no catalog: no trainer is registered";
std::string Seconds(absl::Duration duration);  // "1.20 s"

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_COORDINATOR_IMPL_H_
