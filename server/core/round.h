// One attempt to bring one version to a fixed set of replicas: the commit state machine. Pure.
//
//   kTransfer --every participant staged the source's digest, or enough did by the deadline--> kApply
//   kTransfer --a loss, and others still receive: the session is broken--> finished: kRestart (survivors)
//   kTransfer --a live participant refuses (policy all), or too few remain--> finished: kAborted
//   kApply    --every committed sink applied, failed or ran out of time--> finished: kCommitted
//
// Entering kApply is the decision: it is never taken back, and whoever fails after it is left out, not waited for.
// A replica stands and falls as a whole: one lost rank drops the others, too. Messages that name another epoch or
// version, or that do not fit the sender's state, change nothing.
#ifndef WSYNC_SERVER_CORE_ROUND_H_
#define WSYNC_SERVER_CORE_ROUND_H_

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"

namespace wsync {

struct RoundOptions {
  int32_t quorum = 0;  // 0: all
  int32_t min_replicas = 1;
  absl::Duration stage_timeout;  // for this version's bytes
  absl::Duration apply_timeout;
  // When a session breaks and nobody is known to be lost: ask for another attempt with the same members, or (false,
  // the last attempt) call it the failure of who reported it.
  bool retry = true;
  bool source_retains = true;  // else what breaks after the release cannot be tried again either
  // How long a broken session waits for the loss that explains it: a dead sink breaks the transport of its innocent
  // peers, and their complaints may come before the news of its death.
  absl::Duration settle = absl::Milliseconds(500);
  // What the source sees of the sinks, in the order of the participants: asked when somebody has to be named. None: it
  // cannot tell, and what sinks say of themselves has to do. Null: likewise.
  std::function<std::optional<std::vector<PeerProgress>>()> peers;
};

enum class RoundPhase : uint8_t { kTransfer = 1, kApply, kCommitted, kAborted, kRestart };

// Who is to blame that an attempt failed or was held up to a deadline.
struct Culprit {
  MemberId member = 0;
  std::string name;
  std::string replica;
  std::string reason;
};

struct Participant {
  MemberId member = 0;
  std::string name;
  std::string replica;
  int32_t rank = 0;
};

class Round {
 public:
  // `participants` sorted by (replica, rank). With none the round commits as soon as the source's digest is known.
  Round(uint64_t epoch, uint64_t version, std::vector<Participant> participants, RoundOptions options, absl::Time now);

  // Each returns the Commit and Abort actions that follow; look at phase() afterwards.
  Actions SourceReleased(absl::Time now, const Hash128& digest);
  Actions SourceFailed(absl::Time now, const event::SourceFailed& event);
  Actions Staged(absl::Time now, const event::Staged& event);
  Actions Applied(absl::Time now, const event::Applied& event);
  Actions Failed(absl::Time now, const event::Failed& event);  // a participant says it cannot
  // Those found lost at one time are told together: a decision must not count one of them.
  Actions Lost(absl::Time now, const std::vector<event::Lost>& losses);
  Actions Tick(absl::Time now);
  Actions Cancel(const absl::Status& why);  // aborts unless already decided
  void Heartbeat(absl::Time now, const event::HeartbeatSeen& event);

  RoundPhase phase() const { return phase_; }
  const absl::Status& why() const { return why_; }  // for kAborted and kRestart: names the culprit
  std::vector<MemberId> survivors() const;          // for kRestart
  uint64_t epoch() const { return epoch_; }
  uint64_t version() const { return version_; }
  absl::Time begun() const { return begun_; }
  absl::Time deadline() const;
  std::vector<ReplicaOutcome> Outcomes() const;  // one per replica
  const std::vector<Participant>& participants() const { return participants_; }
  bool Has(MemberId member) const { return index_.contains(member); }
  int64_t replicas() const { return static_cast<int64_t>(replicas_.size()); }
  int64_t StagedReplicas() const;
  int64_t AppliedReplicas() const;
  // Replicas dropped before the decision, with the reason. Empty after kRestart: nobody is to blame, try the same
  // again.
  const std::vector<ReplicaOutcome>& dropped() const { return dropped_; }
  // Live sinks that are to blame, so far; also for kRestart, in case the version cannot be sent again. Nobody is where
  // all of several replicas would be: then it is the source.
  std::vector<Culprit> Culprits() const;

 private:
  enum class SinkState : uint8_t { kReceiving = 1, kStaged, kCommitted, kApplied, kOut, kTorn };
  struct Sink {
    SinkState state = SinkState::kReceiving;
    std::string reason;
    StageTimings timings;
    Hash128 digest;
    MemberPhase phase = MemberPhase::kConnect;
    int64_t bucket = -1;
    uint64_t received_bytes = 0;
    absl::Time heard;
    size_t replica = 0;
    bool accuses = false;  // it said that the session broke
    bool damaged = false;  // it has other bytes than the source sent
    std::string guilt;     // empty: not to blame
  };
  struct Range {
    size_t begin, end;  // the sinks of one replica
    bool dropped = false;
  };

  template <typename Event>
  Sink* Find(absl::Time now, const Event& event);
  bool Last() const { return !options_.retry || (source_digest_.has_value() && !options_.source_retains); }
  int64_t Needed() const { return options_.quorum > 0 ? options_.quorum : options_.min_replicas; }
  int64_t Count(std::initializer_list<SinkState> states) const;
  bool Any(SinkState state) const;
  bool Is(const Range& range, SinkState state) const;  // some sink of it
  const Participant& Who(const Sink& sink) const { return participants_[&sink - sinks_.data()]; }
  std::string Describe(absl::Time now, const Sink& sink, std::string_view what, std::string_view why) const;

  Actions FailTransfer(absl::Time now, Sink& sink, const absl::Status& status, bool torn);
  Actions Refused(absl::Time now, Sink& sink, const absl::Status& why, bool torn);
  void Break(absl::Time now, const absl::Status& why, std::optional<size_t> reporter);
  Actions Settled(absl::Time now);
  Actions StageDeadline(absl::Time now);
  std::optional<std::vector<PeerProgress>> Seen() const;
  std::vector<size_t> Unfinished() const;
  std::vector<size_t> Absent() const;
  std::vector<size_t> Slowest() const;
  std::vector<size_t> Breakers() const;
  std::vector<size_t> Damaged() const;
  void Drop(const Sink& culprit, const absl::Status& why, SinkState state, Actions& out);
  Actions Evaluate(absl::Time now);
  void Commit(absl::Time now, Actions& out);
  void AbortRest(RoundPhase phase, const absl::Status& why, Actions& out);
  void FinishIfResolved();
  ReplicaOutcome Outcome(const Range& range) const;

  uint64_t epoch_;
  uint64_t version_;
  std::vector<Participant> participants_;
  RoundOptions options_;
  RoundPhase phase_ = RoundPhase::kTransfer;
  absl::Status why_;
  absl::Time begun_;
  absl::Time stage_deadline_;
  absl::Time settle_deadline_ = absl::InfiniteFuture();
  absl::Time apply_deadline_ = absl::InfiniteFuture();
  std::optional<Hash128> source_digest_;
  std::vector<Sink> sinks_;  // as participants_
  std::vector<Range> replicas_;
  absl::flat_hash_map<MemberId, size_t> index_;
  absl::Status broken_;              // not OK: the session failed, see RoundOptions::settle
  std::optional<size_t> broken_by_;  // the sink that said so; none: the source
  bool source_broke_ = false;        // the source said so, first or not
  std::vector<ReplicaOutcome> dropped_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_ROUND_H_
