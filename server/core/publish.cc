// The publish in flight: wait for enough replicas, run attempts until one is decided, answer the trainer.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/coordinator_impl.h"
#include "server/core/text.h"

namespace wsync {
namespace {

using Stage = RunningPublish::Stage;

// Attempts repeated with the same members after a broken session or damaged bytes; a third failure is no accident.
constexpr int kRetries = 2;
// How long a publish waits for a replica that is just applying a catch-up, before it goes on without it: applying takes
// milliseconds, and an engine that needs longer must not hold up the trainer.
constexpr absl::Duration kCatchUpGrace = absl::Seconds(1);
// A trainer gives up an agent that is silent for three seconds or more, and trains on: its hanging up may be read here
// after the weights were.
constexpr absl::Duration kCallersPatience = absl::Seconds(2);

absl::Status Prefixed(uint64_t version, const absl::Status& why) {
  return absl::Status(why.code(), absl::StrCat("version ", version, " failed: ", why.message()));
}

std::string Took(absl::Duration duration) { return FormatMs(absl::ToDoubleMilliseconds(duration)); }

}  // namespace

absl::Duration Coordinator::Impl::StageBudget() const {
  const PlanInfo* plan = publish_.has_value() ? &publish_->plan : plan_.has_value() ? &*plan_ : nullptr;
  if (plan == nullptr || options_.min_rate_bytes_per_second <= 0) return options_.stage_timeout;
  return options_.stage_timeout +
         absl::Seconds(static_cast<double>(plan->wire_bytes) / options_.min_rate_bytes_per_second);
}

int64_t Coordinator::Impl::Needed() const { return options_.quorum > 0 ? options_.quorum : options_.min_replicas; }

// ---- the trainer asks

void Coordinator::Impl::On(const event::Publish& event) {
  if (publish_.has_value() && publish_->version == event.version) return;  // the shell joins the caller to it
  if (absl::Status refusal = CheckPublish(event.version); !refusal.ok()) {
    Log(action::Log::kWarn, std::string(refusal.message()));
    out_.push_back(action::PublishDone{event.version, std::move(refusal), {}});
    return;
  }
  publish_.emplace();
  publish_->version = event.version;
  publish_->requested = now_;
  publish_->plan = *plan_;
  publish_->deadline = now_ + options_.min_replicas_wait;
  if (event.version <= committed_.version && !Recalling()) return MeetCommitted();
  CancelCatchUp(absl::CancelledError(absl::StrCat("version ", event.version, " is being published instead")));
}

bool Coordinator::Impl::Unreleased() const { return publish_.has_value() && !publish_->content.has_value(); }

void Coordinator::Impl::On(const event::CallersGone& event) {
  if (!Unreleased() || publish_->version != event.version) return;
  AbortPublish(absl::CancelledError(
      absl::StrCat(event.who, " before the weights were released, and may have changed them; publish it again")));
}

// While the publish ran: one that is read only now was asked for by somebody who waits.
bool Coordinator::Impl::StoodStill() const {
  return Unreleased() && publish_->requested < now_ && still_ > kCallersPatience;
}

void Coordinator::Impl::CallOff() {
  AbortPublish(absl::AbortedError(
      absl::StrFormat("the trainer agent stood still for %s before the weights were released, so the trainer may have "
                      "given up and changed them; publish it again",
                      Seconds(still_))));
}

// ---- attempts

std::vector<Group::Replica> Coordinator::Impl::Candidates() const {
  std::vector<Group::Replica> ready = group_.ReadyReplicas();
  std::erase_if(ready, [this](const Group::Replica& replica) { return publish_->dropped.contains(replica.name); });
  return ready;
}

// A version that goes to whoever is back first is one that, in ring mode, nobody else gets.
absl::Time Coordinator::Impl::FormerGroupBack() const {
  const auto ready = std::count_if(group_.members().begin(), group_.members().end(),
                                   [](const auto& member) { return member.second.ready; });
  // Nobody is ready without a catalog.
  return ready < former_group_ ? first_catalog_ + kRejoinGrace : absl::InfinitePast();
}

// Until then a publish waits for replicas that it need not wait for.
absl::Time Coordinator::Impl::Grace() const {
  const bool unsure = publish_->version <= committed_.version && !decided_;
  return std::max({all_back_, FormerGroupBack(), unsure ? first_catalog_ + kRejoinGrace : absl::InfinitePast(),
                   catch_up_.has_value() ? publish_->requested + kCatchUpGrace : absl::InfinitePast()});
}

void Coordinator::Impl::AdvancePublish() {
  if (!publish_.has_value() || publish_->stage == Stage::kRunning) return;
  const bool late = now_ >= publish_->deadline;
  if (publish_->stage == Stage::kChecking) {
    if (late) {
      AbortPublish(absl::DeadlineExceededError(
          absl::StrFormat("its content was not checked within %s", Seconds(now_ - publish_->requested))));
    }
    return;
  }
  if (publish_->version <= committed_.version) return now_ < Grace() ? void() : MeetCommitted();
  const std::vector<Group::Replica> ready = Candidates();
  const int64_t needed = std::max<int64_t>(options_.quorum, options_.min_replicas);
  const bool enough = static_cast<int64_t>(ready.size()) >= needed;
  if (now_ < Grace() || (!enough && !late)) return;
  if (enough) {
    StartAttempt();
  } else {
    AbortPublish(
        absl::UnavailableError(absl::StrFormat("%d of %d needed replicas are ready after %s: %s", ready.size(), needed,
                                               Seconds(now_ - publish_->requested), group_.WhyNotReady())));
  }
}

void Coordinator::Impl::StartAttempt() {
  const bool first = publish_->stage == Stage::kWaiting;
  if (first) publish_->decide_by = now_ + 2 * StageBudget();
  publish_->stage = Stage::kRunning;
  RoundOptions options;
  options.quorum = options_.quorum;
  options.min_replicas = options_.min_replicas;
  options.stage_timeout = std::min(StageBudget(), publish_->decide_by - now_);
  options.apply_timeout = options_.apply_timeout;
  options.retry = publish_->retries < kRetries;
  options.source_retains = options_.source_retains;
  options.peers = [this, epoch = epoch_ + 1] { return options_.peers ? options_.peers(epoch) : std::nullopt; };
  StopSource(absl::CancelledError("superseded by a newer epoch"));
  round_.emplace(NewRound(Candidates(), publish_->version, options));
  if (first) {
    publish_->first_epoch = epoch_;
    out_.push_back(action::PublishAccepted{publish_->version, epoch_, round_->replicas()});
  }
  const bool encode = !publish_->content.has_value();
  if (encode) retained_ = {};
  BeginRound(*round_, encode);
  if (!encode) Take(round_->SourceReleased(now_, publish_->content->digest));
  FollowPublish();
}

Round Coordinator::Impl::NewRound(const std::vector<Group::Replica>& replicas, uint64_t version, RoundOptions options) {
  std::vector<Participant> participants;
  for (const Group::Replica& replica : replicas) {
    for (const Member* member : replica.ranks) {
      participants.push_back({member->id, member->info.name, replica.name, member->info.rank});
    }
  }
  return Round(++epoch_, version, std::move(participants), options, now_);
}

void Coordinator::Impl::BeginRound(const Round& round, bool encode) {
  std::vector<MemberId> members;
  for (const Participant& participant : round.participants()) members.push_back(participant.member);
  const int32_t world = static_cast<int32_t>(members.size()) + 1;
  if (world > 1) source_epoch_ = epoch_;
  std::string token;  // a token may hold a listener until every rank came: none where nobody will
  if (session_.Serves(members)) {
    token = session_.token;
  } else if (world > 1) {
    token = options_.new_session_token ? options_.new_session_token() : absl::StrCat(epoch_);
  }
  std::vector<std::string> rank_tokens;
  if (token == session_.token && !token.empty()) rank_tokens = std::move(session_.rank_tokens);
  while (rank_tokens.size() < members.size()) {
    rank_tokens.push_back(options_.new_rank_token ? options_.new_rank_token(token) : token);
  }
  session_ = {
      .token = std::move(token), .rank_tokens = std::move(rank_tokens), .members = std::move(members), .epoch = epoch_};
  const bool wide = std::all_of(session_.members.begin(), session_.members.end(),
                                [this](MemberId member) { return group_.Find(member)->info.wide; });
  out_.push_back(
      action::StartSource{epoch_, round.version(), session_.token, world, encode, wide, session_.rank_tokens});
  const auto group = std::count_if(group_.members().begin(), group_.members().end(),
                                   [](const auto& entry) { return entry.second.ready && entry.second.fenced.empty(); });
  int32_t rank = 0;
  for (const MemberId member : session_.members) {
    Member& participant = *group_.Find(member);
    participant.round = epoch_;
    participant.progress = {member, epoch_, round.version(), MemberPhase::kConnect};
    out_.push_back(action::SendBegin{member, epoch_, round.version(), session_.rank_tokens[rank], rank + 1, world, wide,
                                     static_cast<int32_t>(group)});
    ++rank;
  }
}

void Coordinator::Impl::KeepSession(const Round& round) {
  if (session_.epoch == round.epoch()) session_.applied = round.AppliedReplicas() == round.replicas();
}

void Coordinator::Impl::StopSource(const absl::Status& reason) {
  if (source_epoch_ != 0) out_.push_back(action::CancelSource{source_epoch_, reason, false});
  source_epoch_ = 0;
}

// ---- the source speaks

void Coordinator::Impl::On(const event::SourceReleased& event) {
  if (StoodStill()) return;  // what was read may be a mixture
  if (!publish_.has_value() || publish_->stage != Stage::kRunning || publish_->version != event.version ||
      publish_->content.has_value() || (event.epoch != 0 && event.epoch < publish_->first_epoch)) {
    return;
  }
  const ServedVersion content{event.version, event.digest};
  if (committed_.version == event.version && committed_ != content) {
    AbortPublish(absl::FailedPreconditionError(absl::StrFormat(
        "a member serves it with other content (digest %s, now %s); publish this as version %d or higher",
        committed_.digest.ShortHex(), event.digest.ShortHex(), committed_.version + 1)));
    return;
  }
  publish_->content = content;
  publish_->encode = event.encode;
  publish_->released = now_;
  if (options_.source_retains && plan_.has_value()) retained_ = content;
  out_.push_back(action::PublishReleased{event.version, now_ - publish_->requested});
  Take(round_->SourceReleased(now_, event.digest));
  FollowPublish();
}

void Coordinator::Impl::On(const event::SourceSent& event) {
  if (event.epoch == session_.epoch) session_.sent = true;
  if (event.epoch == source_epoch_) source_epoch_ = 0;
}

void Coordinator::Impl::On(const event::SourceFailed& event) {
  if (event.epoch == source_epoch_) source_epoch_ = 0;
  if (event.version_lost && retained_.version == event.version) retained_ = {};
  if (catch_up_.has_value() && event.epoch == catch_up_->epoch()) {
    Take(catch_up_->SourceFailed(now_, event));
    FollowCatchUp();
  }
  // That a version is lost stays true in whichever attempt the source found it out.
  const bool concerns =
      round_.has_value() && event.version == publish_->version &&
      (event.epoch == round_->epoch() || (event.version_lost && event.epoch >= publish_->first_epoch));
  if (concerns) {
    Take(round_->SourceFailed(now_, event));
    FollowPublish();
  }
}

// ---- what the attempt came to

void Coordinator::Impl::FollowPublish() {
  if (!round_.has_value()) return;
  switch (round_->phase()) {
    case RoundPhase::kTransfer:
      return;
    case RoundPhase::kApply:
      if (!publish_->decided) Decide();
      return;
    case RoundPhase::kCommitted:
      if (!publish_->decided) Decide();
      return FinishPublish();
    case RoundPhase::kAborted:
      return LosePublish();
    case RoundPhase::kRestart:
      return RestartPublish(!round_->dropped().empty() && Blame(*round_));
  }
}

void Coordinator::Impl::Decide() {
  publish_->decided = decided_ = true;
  (void)Blame(*round_);
  publish_->staged = now_;
  committed_ = *publish_->content;
  if (!round_->dropped().empty()) StopSource(absl::CancelledError("decided without the receivers that were late"));
}

// Whoever cost the version before, too, does not cost it this time: the others get it in another attempt.
void Coordinator::Impl::LosePublish() {
  if (!Blame(*round_)) return AbortPublish(round_->why());
  for (const Culprit& culprit : round_->Culprits()) {
    const ReplicaOutcome outcome{culprit.replica, ReplicaResult::kLeftOut, culprit.reason, {}};
    publish_->dropped.emplace(culprit.replica, outcome);
  }
  RestartPublish(/*blamed=*/true);
}

// It is lost after all, and to whom.
void Coordinator::Impl::GiveUpPublish(const absl::Status& why) {
  (void)Blame(*round_);
  AbortPublish(why);
}

void Coordinator::Impl::RestartPublish(bool blamed) {
  const absl::Status why = round_->why();
  for (const ReplicaOutcome& outcome : round_->dropped()) publish_->dropped.emplace(outcome.replica, outcome);
  const bool nobody_to_blame = round_->dropped().empty() && !blamed;
  if (nobody_to_blame) ++publish_->retries;
  // What broke after a long wait (a sink that lives and cannot connect, say) would take as long again; but not without
  // a replica that is not ready any more.
  if (nobody_to_blame && AllAreReady(*round_) &&
      publish_->decide_by - now_ < 1.5 * StageBudget()) {  // the first half of the budget is over
    if (options_.quorum == 0) return GiveUpPublish(why);
    publish_->retries = kRetries;  // next time whoever breaks it is left out
  }
  if (publish_->content.has_value() && retained_ != *publish_->content) {
    return GiveUpPublish(absl::Status(
        why.code(),
        absl::StrCat(why.message(), "; the source does not retain the version, so it cannot be sent again")));
  }
  if (now_ >= publish_->decide_by) return GiveUpPublish(why);
  const int64_t left = static_cast<int64_t>(Candidates().size());
  if (left < Needed()) {
    return GiveUpPublish(absl::UnavailableError(
        absl::StrFormat("%s; %d of %d needed replicas are left", why.message(), left, Needed())));
  }
  Log(action::Log::kWarn, absl::StrFormat("version %d: epoch %d ended, sending again to %s: %s", publish_->version,
                                          round_->epoch(), Counted(left, "replica"), why.message()));
  StopSource(why);
  NoteAbsent();
  StartAttempt();
}

bool Coordinator::Impl::AllAreReady(const Round& round) const {
  return std::all_of(round.participants().begin(), round.participants().end(),
                     [this](const Participant& participant) { return !group_.WhyNotReady(participant.replica); });
}

void Coordinator::Impl::NoteAbsent() {
  for (const Participant& participant : round_->participants()) {
    const std::string& replica = participant.replica;
    if (publish_->dropped.contains(replica)) continue;
    if (const auto why = group_.WhyNotReady(replica); why.has_value()) {
      const std::string reason = absl::StrCat("not ready when the version was sent again: ", *why);
      publish_->absent[replica] = {replica, ReplicaResult::kLeftOut, reason, {}};
    }
  }
}

// Who was called off while bytes landed in live memory says so afterwards, by Ready.
void Coordinator::Impl::NoteTorn(ReplicaOutcome& outcome) const {
  const bool torn = std::any_of(group_.members().begin(), group_.members().end(), [&](const auto& entry) {
    return entry.second.info.replica == outcome.replica && entry.second.torn;
  });
  if (torn && outcome.result == ReplicaResult::kLeftOut) outcome.result = ReplicaResult::kTorn;
}

VersionReport Coordinator::Impl::Report() const {
  VersionReport report;
  report.version = publish_->version;
  report.digest = publish_->content->digest;
  report.plan = publish_->plan;
  report.replicas = round_->Outcomes();
  for (const auto& [replica, outcome] : publish_->dropped) report.replicas.push_back(outcome);
  for (const auto& [replica, outcome] : publish_->absent) {
    const auto same = [&name = replica](const ReplicaOutcome& other) { return other.replica == name; };
    if (std::none_of(report.replicas.begin(), report.replicas.end(), same)) report.replicas.push_back(outcome);
  }
  for (ReplicaOutcome& outcome : report.replicas) NoteTorn(outcome);
  std::sort(report.replicas.begin(), report.replicas.end(),
            [](const ReplicaOutcome& a, const ReplicaOutcome& b) { return a.replica < b.replica; });
  report.encode = publish_->encode;
  report.released = publish_->released - publish_->requested;
  report.staged = publish_->staged - publish_->requested;
  report.committed = now_ - publish_->requested;
  return report;
}

void Coordinator::Impl::FinishPublish() {
  KeepSession(*round_);
  (void)Blame(*round_);
  VersionReport report = Report();
  size_t applied = 0;
  absl::Duration transfer;
  for (const ReplicaOutcome& outcome : report.replicas) {
    applied += outcome.result == ReplicaResult::kApplied;
    transfer = std::max(transfer, outcome.timings.transfer);
    if (outcome.result != ReplicaResult::kApplied) NoteLeftOut(outcome, report.version);
  }
  last_report_ = report;
  last_report_time_ = now_;
  AnswerPublish(absl::OkStatus(), report);
  Log(action::Log::kInfo,  // the trainer does not wait for a line in a file
      absl::StrFormat("version %d committed: %d/%d replicas, %s, %s (encode %s, transfer %s, apply %s)", report.version,
                      applied, report.replicas.size(), FormatBytes(static_cast<double>(report.plan.payload_bytes)),
                      Took(report.committed), Took(report.encode), Took(transfer),
                      Took(report.committed - report.staged)));
}

void Coordinator::Impl::NoteLeftOut(const ReplicaOutcome& outcome, uint64_t version) {
  const char* what = outcome.result == ReplicaResult::kTorn ? "is torn by" : "was left out of";
  Log(action::Log::kWarn,
      absl::StrFormat("replica %s %s version %d: %s", outcome.replica, what, version, outcome.reason));
  for (auto& [id, member] : group_.members()) {
    if (member.info.replica == outcome.replica && !outcome.reason.empty()) member.last_error = outcome.reason;
  }
}

void Coordinator::Impl::AbortPublish(const absl::Status& why) {
  const absl::Status status = Prefixed(publish_->version, why);
  if (round_.has_value()) {
    Take(round_->Cancel(status));
    out_.push_back(action::CancelSource{round_->epoch(), status, true});
    source_epoch_ = 0;
    retained_ = {};
  } else if (publish_->stage == Stage::kChecking) {
    out_.push_back(action::CancelSource{publish_->first_epoch, status, true});
  }
  Log(action::Log::kError, std::string(status.message()));
  AnswerPublish(status, {});
}

void Coordinator::Impl::AnswerPublish(const absl::Status& status, VersionReport report) {
  out_.push_back(action::PublishDone{publish_->version, status, std::move(report)});
  publish_.reset();
  round_.reset();
}

}  // namespace wsync
