#include "server/core/round.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/text.h"

namespace wsync {
namespace {

// Failures that a dying peer causes in others: they accuse the session, not their reporter.
bool AccusesSession(const absl::Status& status, MemberPhase phase) {
  if (phase != MemberPhase::kConnect && phase != MemberPhase::kReceive) return false;
  return absl::IsUnavailable(status) || absl::IsCancelled(status) || absl::IsAborted(status) ||
         absl::IsDeadlineExceeded(status);
}

// Its engine is gone, though it has everything: the replica is lost, and nobody else's bytes are in doubt.
bool IsLoss(const absl::Status& status, MemberPhase phase) {
  return absl::IsUnavailable(status) && phase == MemberPhase::kStaged;
}

StageTimings Slower(const StageTimings& a, const StageTimings& b) {
  return {std::max(a.encode, b.encode), std::max(a.transfer, b.transfer), std::max(a.check, b.check),
          std::max(a.apply, b.apply), std::max(a.pause, b.pause)};
}

}  // namespace

Round::Round(uint64_t epoch, uint64_t version, std::vector<Participant> participants, RoundOptions options,
             absl::Time now)
    : epoch_(epoch),
      version_(version),
      participants_(std::move(participants)),
      options_(options),
      begun_(now),
      stage_deadline_(now + options.stage_timeout),
      sinks_(participants_.size()) {
  for (size_t i = 0; i < participants_.size(); ++i) {
    if (i == 0 || participants_[i].replica != participants_[i - 1].replica) replicas_.push_back({i, i});
    replicas_.back().end = i + 1;
    sinks_[i].heard = now;
    sinks_[i].replica = replicas_.size() - 1;
    index_[participants_[i].member] = i;
  }
}

template <typename Event>
Round::Sink* Round::Find(absl::Time now, const Event& event) {
  const auto it = index_.find(event.member);
  if (it == index_.end() || event.epoch != epoch_ || event.version != version_) return nullptr;
  Sink& sink = sinks_[it->second];
  sink.heard = now;
  return &sink;
}

void Round::Heartbeat(absl::Time now, const event::HeartbeatSeen& event) {
  const auto it = index_.find(event.member);
  if (it != index_.end()) sinks_[it->second].heard = now;
  Sink* sink = Find(now, event);
  if (sink == nullptr) return;
  sink->phase = event.phase;
  sink->bucket = event.bucket;
  sink->received_bytes = event.received_bytes;
}

Actions Round::SourceReleased(absl::Time now, const Hash128& digest) {
  if (phase_ != RoundPhase::kTransfer || source_digest_.has_value()) return {};
  source_digest_ = digest;
  Actions out;
  for (Sink& sink : sinks_) {
    if (phase_ != RoundPhase::kTransfer || sink.state != SinkState::kStaged || sink.digest == digest) continue;
    Actions more = FailTransfer(now, sink, absl::DataLossError("staged other content than the source sent"), false);
    out.insert(out.end(), more.begin(), more.end());
  }
  Actions more = Evaluate(now);
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

Actions Round::SourceFailed(absl::Time now, const event::SourceFailed& event) {
  if (phase_ != RoundPhase::kTransfer) return {};
  const absl::Status why(event.status.code(),
                         absl::StrFormat("the source failed %.1f s after begin: %s",
                                         absl::ToDoubleSeconds(now - begun_), event.status.message()));
  Actions out;
  if (event.version_lost) {
    AbortRest(RoundPhase::kAborted, why, out);
  } else {
    source_broke_ = true;
    Break(now, why, std::nullopt);
  }
  return out;
}

Actions Round::Staged(absl::Time now, const event::Staged& event) {
  Sink* sink = Find(now, event);
  if (sink == nullptr || phase_ != RoundPhase::kTransfer || sink->state != SinkState::kReceiving) return {};
  sink->phase = MemberPhase::kStaged;
  sink->bucket = -1;
  sink->digest = event.digest;
  sink->timings = event.timings;
  if (source_digest_.has_value() && event.digest != *source_digest_) {
    return FailTransfer(now, *sink, absl::DataLossError("staged other content than the source sent"), false);
  }
  sink->state = SinkState::kStaged;
  return Evaluate(now);
}

Actions Round::Applied(absl::Time now, const event::Applied& event) {
  Sink* sink = Find(now, event);
  if (sink == nullptr || phase_ != RoundPhase::kApply || sink->state != SinkState::kCommitted) return {};
  sink->timings = Slower(sink->timings, event.timings);
  sink->state = SinkState::kApplied;
  if (event.digest != *source_digest_) {
    sink->state = SinkState::kTorn;
    sink->reason = Describe(now, *sink, "applied other content than was committed", event.digest.ShortHex());
  }
  FinishIfResolved();
  return {};
}

Actions Round::Failed(absl::Time now, const event::Failed& event) {
  Sink* sink = Find(now, event);
  if (sink == nullptr) return {};
  const bool pending = sink->state == SinkState::kReceiving || sink->state == SinkState::kStaged;
  if (phase_ == RoundPhase::kTransfer && pending) {
    sink->phase = event.phase;
    sink->bucket = event.bucket;
    return FailTransfer(now, *sink, event.status, event.torn);
  }
  if (phase_ == RoundPhase::kApply && sink->state == SinkState::kCommitted) {
    sink->phase = event.phase;
    sink->reason = Describe(now, *sink, "failed", std::string(event.status.message()));
    sink->state = event.torn ? SinkState::kTorn : SinkState::kOut;
    FinishIfResolved();
  }
  return {};
}

Actions Round::FailTransfer(absl::Time now, Sink& sink, const absl::Status& status, bool torn) {
  const absl::Status why(status.code(), Describe(now, sink, "failed", std::string(status.message())));
  sink.state = SinkState::kReceiving;  // whatever it had staged is gone
  Actions out;
  if (AccusesSession(status, sink.phase)) {
    sink.accuses = true;
    Break(now, why, &sink - sinks_.data());
  } else if (IsLoss(status, sink.phase)) {
    Drop(sink, why, torn ? SinkState::kTorn : SinkState::kOut, out);
    Actions more = Evaluate(now);
    out.insert(out.end(), more.begin(), more.end());
  } else if (absl::IsDataLoss(status) && !Last() && options_.quorum == 0) {
    AbortRest(RoundPhase::kRestart, why, out);  // bytes were damaged on the way: send them again
  } else if (absl::IsDataLoss(status) && options_.quorum == 0) {
    sink.damaged = true;  // or at the source: then the others soon say the same
    Break(now, why, &sink - sinks_.data());
  } else {
    return Refused(now, sink, why, torn);
  }
  return out;
}

Actions Round::Refused(absl::Time now, Sink& sink, const absl::Status& why, bool torn) {
  Actions out;
  sink.guilt = std::string(why.message());
  if (options_.quorum == 0) {
    AbortRest(RoundPhase::kAborted, why, out);
    return out;
  }
  Drop(sink, why, torn ? SinkState::kTorn : SinkState::kOut, out);
  Actions more = Evaluate(now);
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

void Round::Break(absl::Time now, const absl::Status& why, std::optional<size_t> reporter) {
  if (!broken_.ok()) return;
  broken_ = why;
  broken_by_ = reporter;
  settle_deadline_ = now + options_.settle;
}

Actions Round::Lost(absl::Time now, const std::vector<event::Lost>& losses) {
  Actions out;
  for (const event::Lost& loss : losses) {
    const auto it = index_.find(loss.member);
    if (it == index_.end()) continue;
    Sink& sink = sinks_[it->second];
    if (phase_ == RoundPhase::kTransfer) {
      Drop(sink, absl::UnavailableError(Describe(now, sink, "was lost", loss.reason)), SinkState::kOut, out);
    } else if (phase_ == RoundPhase::kApply && sink.state == SinkState::kCommitted) {
      sink.state = SinkState::kOut;
      sink.reason = Describe(now, sink, "was lost before it said 'applied'", loss.reason);
    }
  }
  FinishIfResolved();
  if (dropped_.empty()) return out;
  Actions more = Evaluate(now);
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

Actions Round::Tick(absl::Time now) {
  if (phase_ == RoundPhase::kTransfer && now >= settle_deadline_) return Settled(now);
  if (phase_ == RoundPhase::kTransfer && now >= stage_deadline_) return StageDeadline(now);
  if (phase_ == RoundPhase::kApply && now >= apply_deadline_) {
    for (Sink& sink : sinks_) {
      if (sink.state != SinkState::kCommitted) continue;
      sink.reason = Describe(now, sink, "did not apply in time",
                             absl::StrFormat("apply timeout is %.1f s", absl::ToDoubleSeconds(options_.apply_timeout)));
      sink.guilt = sink.reason;
      sink.state = SinkState::kOut;
    }
    FinishIfResolved();
  }
  return {};
}

Actions Round::Cancel(const absl::Status& why) {
  Actions out;
  if (phase_ == RoundPhase::kTransfer) AbortRest(RoundPhase::kAborted, why, out);
  return out;
}

// Takes the culprit's whole replica out; its other ranks are told to stop.
void Round::Drop(const Sink& culprit, const absl::Status& why, SinkState state, Actions& out) {
  Range& range = replicas_[culprit.replica];
  if (range.dropped) return;
  range.dropped = true;
  for (size_t i = range.begin; i < range.end; ++i) {
    Sink& sink = sinks_[i];
    sink.reason = std::string(why.message());
    sink.state = &sink == &culprit ? state : SinkState::kOut;
    if (absl::IsUnavailable(why) && &sink == &culprit) continue;  // it is gone
    out.push_back(action::SendAbort{participants_[i].member, epoch_, version_, why});
  }
  dropped_.push_back(Outcome(range));
  if (why_.ok()) why_ = why;
}

Actions Round::Evaluate(absl::Time now) {
  Actions out;
  if (phase_ != RoundPhase::kTransfer) return out;
  const int64_t alive = replicas() - static_cast<int64_t>(dropped_.size());
  if (alive < Needed()) {
    AbortRest(
        RoundPhase::kAborted,
        absl::Status(why_.code(), absl::StrCat(why_.message(), "; ", alive, " of ", Counted(replicas(), "replica"),
                                               alive == 1 ? " remains, " : " remain, ", Needed(),
                                               Needed() == 1 ? " is needed" : " are needed")),
        out);
  } else if (!Any(SinkState::kReceiving)) {
    if (source_digest_.has_value()) Commit(now, out);
  } else if (!dropped_.empty()) {
    AbortRest(RoundPhase::kRestart, why_, out);
  }
  return out;
}

void Round::Commit(absl::Time now, Actions& out) {
  phase_ = RoundPhase::kApply;
  why_ = absl::OkStatus();
  apply_deadline_ = now + options_.apply_timeout;
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (sinks_[i].state != SinkState::kStaged) continue;
    sinks_[i].state = SinkState::kCommitted;
    sinks_[i].phase = MemberPhase::kPause;
    out.push_back(action::SendCommit{participants_[i].member, epoch_, version_, *source_digest_});
  }
  FinishIfResolved();
}

void Round::AbortRest(RoundPhase phase, const absl::Status& why, Actions& out) {
  phase_ = phase;
  why_ = why;
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (sinks_[i].state != SinkState::kReceiving && sinks_[i].state != SinkState::kStaged) continue;
    out.push_back(action::SendAbort{participants_[i].member, epoch_, version_, why});
  }
}

void Round::FinishIfResolved() {
  if (phase_ == RoundPhase::kApply && !Any(SinkState::kCommitted)) phase_ = RoundPhase::kCommitted;
}

std::vector<MemberId> Round::survivors() const {
  std::vector<MemberId> members;
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (!replicas_[sinks_[i].replica].dropped) members.push_back(participants_[i].member);
  }
  return members;
}

absl::Time Round::deadline() const {
  if (phase_ == RoundPhase::kTransfer) return std::min(settle_deadline_, stage_deadline_);
  return phase_ == RoundPhase::kApply ? apply_deadline_ : absl::InfiniteFuture();
}

std::vector<ReplicaOutcome> Round::Outcomes() const {
  std::vector<ReplicaOutcome> outcomes;
  outcomes.reserve(replicas_.size());
  for (const Range& range : replicas_) outcomes.push_back(Outcome(range));
  return outcomes;
}

// Ranks that ended on different versions make a torn replica, though each of them may be whole.
ReplicaOutcome Round::Outcome(const Range& range) const {
  ReplicaOutcome outcome{participants_[range.begin].replica, ReplicaResult::kApplied, "", {}};
  bool applied = false, torn = false, left_out = false;
  for (size_t i = range.begin; i < range.end; ++i) {
    const Sink& sink = sinks_[i];
    outcome.timings = Slower(outcome.timings, sink.timings);
    applied |= sink.state == SinkState::kApplied;
    torn |= sink.state == SinkState::kTorn;
    left_out |= sink.state != SinkState::kApplied && sink.state != SinkState::kTorn;
    if (outcome.reason.empty()) outcome.reason = sink.reason;
  }
  if (torn || (applied && left_out)) {
    outcome.result = ReplicaResult::kTorn;
  } else if (left_out) {
    outcome.result = ReplicaResult::kLeftOut;
  }
  return outcome;
}

int64_t Round::StagedReplicas() const {
  return Count({SinkState::kStaged, SinkState::kCommitted, SinkState::kApplied});
}

int64_t Round::AppliedReplicas() const { return Count({SinkState::kApplied}); }

int64_t Round::Count(std::initializer_list<SinkState> states) const {
  return std::count_if(replicas_.begin(), replicas_.end(), [&](const Range& range) {
    return std::all_of(sinks_.begin() + range.begin, sinks_.begin() + range.end, [&](const Sink& sink) {
      return std::find(states.begin(), states.end(), sink.state) != states.end();
    });
  });
}

bool Round::Any(SinkState state) const {
  return std::any_of(sinks_.begin(), sinks_.end(), [state](const Sink& sink) { return sink.state == state; });
}

std::string Round::Describe(absl::Time now, const Sink& sink, std::string_view what, std::string_view why) const {
  const Participant& who = Who(sink);
  const std::string bucket = sink.bucket >= 0 ? absl::StrCat(", bucket ", sink.bucket) : "";
  return absl::StrFormat(
      "replica %s rank %d (%s) %s in phase %s%s, %.1f s after begin, last heard of %.1f s before: %s", who.replica,
      who.rank, who.name, what, MemberPhaseName(sink.phase), bucket, absl::ToDoubleSeconds(now - begun_),
      absl::ToDoubleSeconds(now - sink.heard), why);
}

}  // namespace wsync
