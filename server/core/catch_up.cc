// Catch-up: while nothing is published, replicas that were left out, joined late or are torn get the committed version
// again from the source's retained copy.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "server/core/coordinator_impl.h"
#include "server/core/text.h"

namespace wsync {
namespace {

// A replica whose catch-up fails is asked again after 1, 2, 4 .. 60 s: soon, since the first failure is often the tail
// of what made it lag, but not hot, since each try costs the source a transfer.
constexpr absl::Duration kFirstBackoff = absl::Seconds(1);
constexpr absl::Duration kLongestBackoff = absl::Seconds(60);

}  // namespace

bool Coordinator::Impl::CatchUpPossible() const {
  if (publish_.has_value() || catch_up_.has_value() || !plan_.has_value()) return false;
  if (committed_.version == 0 || retained_ != committed_) return false;
  return std::any_of(group_.members().begin(), group_.members().end(), [this](const auto& entry) {
    return entry.second.torn || entry.second.info.serving != committed_;
  });
}

std::vector<Group::Replica> Coordinator::Impl::LaggingReplicas() const {
  std::vector<Group::Replica> lagging = group_.ReadyReplicas();
  std::erase_if(lagging, [this](const Group::Replica& replica) {
    return std::all_of(replica.ranks.begin(), replica.ranks.end(),
                       [this](const Member* member) { return !member->torn && member->info.serving == committed_; });
  });
  return lagging;
}

absl::Time Coordinator::Impl::BackoffOf(const std::string& replica) const {
  const auto it = backoff_.find(replica);
  return it == backoff_.end() ? absl::InfinitePast() : it->second.until;
}

absl::Time Coordinator::Impl::NextCatchUp() const {
  absl::Time next = absl::InfiniteFuture();
  if (!CatchUpPossible()) return next;
  for (const Group::Replica& replica : LaggingReplicas()) next = std::min(next, BackoffOf(replica.name));
  return next;
}

void Coordinator::Impl::StartCatchUp() {
  if (!CatchUpPossible()) return;
  std::vector<Group::Replica> replicas = LaggingReplicas();
  std::erase_if(replicas, [this](const Group::Replica& replica) { return BackoffOf(replica.name) > now_; });
  if (replicas.empty()) return;
  RoundOptions options;
  options.quorum = 1;  // each replica for itself: one that fails holds up no other
  options.stage_timeout = StageBudget();
  options.apply_timeout = options_.apply_timeout;
  StopSource(absl::CancelledError("superseded by a newer epoch"));
  catch_up_.emplace(NewRound(replicas, committed_.version, options));
  catch_up_decided_ = false;
  Log(action::Log::kInfo, absl::StrFormat("catch-up with version %d begins for %s, first %s", committed_.version,
                                          Counted(static_cast<int64_t>(replicas.size()), "replica"), replicas[0].name));
  BeginRound(*catch_up_, /*encode=*/false);
  Take(catch_up_->SourceReleased(now_, committed_.digest));
}

void Coordinator::Impl::FollowCatchUp() {
  if (!catch_up_.has_value() || catch_up_->phase() == RoundPhase::kTransfer) return;
  const bool decided = catch_up_->phase() == RoundPhase::kApply || catch_up_->phase() == RoundPhase::kCommitted;
  if (decided && !catch_up_decided_ && !catch_up_->dropped().empty()) {
    StopSource(absl::CancelledError("decided without the receivers that were late"));
  }
  catch_up_decided_ = decided;
  if (catch_up_->phase() == RoundPhase::kApply) return;
  std::vector<ReplicaOutcome> outcomes = catch_up_->Outcomes();
  if (!decided) {
    // The culprits wait; the innocent go on at once. With nobody to blame all of them wait.
    if (!catch_up_->dropped().empty()) outcomes = catch_up_->dropped();
    for (ReplicaOutcome& outcome : outcomes) {
      if (outcome.reason.empty()) outcome.reason = std::string(catch_up_->why().message());
    }
    StopSource(catch_up_->why());
  }
  const uint64_t version = catch_up_->version();
  KeepSession(*catch_up_);
  catch_up_.reset();
  for (ReplicaOutcome outcome : outcomes) {
    NoteTorn(outcome);
    RecordCatchUp(outcome, version);
  }
}

void Coordinator::Impl::CancelCatchUp(const absl::Status& why) {
  if (!catch_up_.has_value() || catch_up_->phase() != RoundPhase::kTransfer) return;
  Take(catch_up_->Cancel(why));
  StopSource(why);
  catch_up_.reset();
}

void Coordinator::Impl::RecordCatchUp(const ReplicaOutcome& outcome, uint64_t version) {
  if (last_report_.has_value() && last_report_->version == version) {
    auto& replicas = last_report_->replicas;
    std::erase_if(replicas, [&](const ReplicaOutcome& old) { return old.replica == outcome.replica; });
    replicas.insert(std::find_if(replicas.begin(), replicas.end(),
                                 [&](const ReplicaOutcome& other) { return other.replica > outcome.replica; }),
                    outcome);
  }
  if (outcome.result == ReplicaResult::kApplied) {
    backoff_.erase(outcome.replica);
    Log(action::Log::kInfo, absl::StrFormat("replica %s caught up with version %d", outcome.replica, version));
    return;
  }
  // Replicas that never come back must not stay here for ever.
  std::erase_if(backoff_, [this](const auto& entry) { return now_ - entry.second.until > 10 * kLongestBackoff; });
  Backoff& backoff = backoff_[outcome.replica];
  backoff.until = now_ + std::min(kLongestBackoff, kFirstBackoff * (1 << std::min(backoff.failures, 10)));
  ++backoff.failures;
  NoteLeftOut(outcome, version);
}

}  // namespace wsync
