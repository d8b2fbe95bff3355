// One attempt to bring one version to a fixed set of replicas: the commit state machine. Pure.
//
//   kTransfer --every participant staged the source's digest, or a quorum did by the deadline--> kApply
//   kTransfer --a loss with too little left to decide on--> finished: kRestart (survivors) or kAborted
//   kApply    --every committed sink applied, failed or ran out of time--> finished: kCommitted
//
// Entering kApply is the decision: it is never taken back, and whoever fails after it is left out, not waited for.
#ifndef WSYNC_SERVER_CORE_ROUND_H_
#define WSYNC_SERVER_CORE_ROUND_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"

namespace wsync {

struct RoundOptions {
  int32_t quorum = 0;  // 0: all
  int32_t min_replicas = 1;
  absl::Duration stage_timeout;  // for this version's bytes
  absl::Duration apply_timeout;
};

enum class RoundPhase : uint8_t { kTransfer = 1, kApply, kCommitted, kAborted, kRestart };

struct Participant {
  MemberId member = 0;
  std::string name;
  std::string replica;
  int32_t rank = 0;
};

class Round {
 public:
  // With no participants the round commits as soon as the source's digest is known.
  Round(uint64_t epoch, uint64_t version, std::vector<Participant> participants, RoundOptions options, absl::Time now);

  // Each returns the Commit and Abort actions that follow; look at phase() afterwards.
  Actions SourceReleased(absl::Time now, const Hash128& digest);
  Actions Staged(absl::Time now, const event::Staged& event);
  Actions Applied(absl::Time now, const event::Applied& event);
  Actions Failed(absl::Time now, const event::Failed& event);  // a participant says it cannot
  Actions Lost(absl::Time now, MemberId member, const std::string& reason);
  Actions Tick(absl::Time now);
  Actions Cancel(const absl::Status& why);  // aborts unless already decided

  RoundPhase phase() const { return phase_; }
  const absl::Status& why() const { return why_; }  // for kAborted and kRestart: names the culprit
  std::vector<MemberId> survivors() const;          // for kRestart
  uint64_t epoch() const { return epoch_; }
  uint64_t version() const { return version_; }
  absl::Time deadline() const;
  std::vector<ReplicaOutcome> Outcomes() const;  // one per replica
  const std::vector<Participant>& participants() const { return participants_; }
  int64_t StagedReplicas() const;
  int64_t AppliedReplicas() const;

 private:
  enum class SinkState : uint8_t { kReceiving = 1, kStaged, kCommitted, kApplied, kOut, kTorn };
  struct Sink {
    SinkState state = SinkState::kReceiving;
    std::string reason;
    StageTimings timings;
    Hash128 digest;
  };
  uint64_t epoch_;
  uint64_t version_;
  std::vector<Participant> participants_;
  RoundOptions options_;
  RoundPhase phase_ = RoundPhase::kTransfer;
  absl::Status why_;
  absl::Time stage_deadline_;
  absl::Time apply_deadline_ = absl::InfiniteFuture();
  std::optional<Hash128> source_digest_;
  std::map<MemberId, Sink> sinks_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_ROUND_H_
