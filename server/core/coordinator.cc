#include "server/core/coordinator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/coordinator_impl.h"
#include "server/core/text.h"

namespace wsync {
namespace {

// While somebody depends on us, steps come this often: a longer gap means that our process stood still (stopped, or
// starved).
constexpr absl::Duration kTick = absl::Milliseconds(250);
// After such a gap heartbeats may be waiting unread. Well above a tick and a scheduler's delay, well below any sensible
// heartbeat timeout.
constexpr absl::Duration kUnread = absl::Milliseconds(750);
// What members that gave us up while we stood still take to join again. Without it the next version would go to
// whoever is back first, and in ring mode nobody else gets it.
constexpr absl::Duration kReturnGrace = absl::Milliseconds(500);

}  // namespace

std::string Seconds(absl::Duration duration) { return absl::StrFormat("%.2f s", absl::ToDoubleSeconds(duration)); }

Coordinator::Coordinator(CoordinatorOptions options, absl::Time now)
    : impl_(std::make_unique<Impl>(std::move(options), now)) {}
Coordinator::~Coordinator() = default;
Actions Coordinator::Step(absl::Time now, const Event& event) { return impl_->Step(now, event); }
absl::Time Coordinator::NextDeadline() const { return impl_->NextDeadline(); }
StatusSnapshot Coordinator::Snapshot(absl::Time now) const { return impl_->Snapshot(now); }

Coordinator::Impl::Impl(CoordinatorOptions options, absl::Time now)
    : options_(std::move(options)), now_(now), group_(options_.heartbeat_timeout) {}

Actions Coordinator::Impl::Step(absl::Time now, const Event& event) {
  still_ = ticking_ ? now - now_ : absl::ZeroDuration();
  now_ = std::max(now_, now);
  if (still_ > kUnread) {
    group_.Forgive(now_);
    stood_still_ = now_;
  }
  if (still_ > options_.heartbeat_timeout / 2) all_back_ = now_ + kReturnGrace;
  out_.clear();
  std::visit([this](const auto& what) { On(what); }, event);
  if (StoodStill()) CallOff();
  Advance();
  ticking_ = Ticks();
  return std::move(out_);
}

void Coordinator::Impl::Advance() {
  LoseSilentMembers();
  group_.ForgetLost(now_);
  if (catch_up_.has_value()) {
    Take(catch_up_->Tick(now_));
    FollowCatchUp();
  }
  if (round_.has_value()) {
    Take(round_->Tick(now_));
    FollowPublish();
  }
  AdvancePublish();
  StartCatchUp();
}

// All of them leave the group before any round hears of it, so that no new attempt begins with one of them.
void Coordinator::Impl::LoseSilentMembers() {
  const std::vector<MemberId> silent = group_.Silent(now_);
  if (silent.empty()) return;
  std::vector<event::Lost> losses;
  for (const MemberId id : silent) {
    const absl::Duration silence = now_ - group_.Find(id)->last_seen;
    losses.push_back({id, absl::StrFormat("no heartbeat for %.1f s", absl::ToDoubleSeconds(silence))});
    out_.push_back(action::Disconnect{id, losses.back().reason});
    ListAsLost(id, losses.back().reason);
  }
  TellRounds(losses);
}

void Coordinator::Impl::TellRounds(const std::vector<event::Lost>& losses) {
  if (catch_up_.has_value()) {
    Take(catch_up_->Lost(now_, losses));
    FollowCatchUp();
  }
  if (round_.has_value()) {
    Take(round_->Lost(now_, losses));
    FollowPublish();
  }
}

bool Coordinator::Impl::Ticks() const { return Unreleased() || !group_.members().empty(); }

absl::Time Coordinator::Impl::NextDeadline() const {
  absl::Time next = std::min({group_.NextSilence(), group_.NextForget(), NextCatchUp()});
  if (round_.has_value()) next = std::min(next, round_->deadline());
  if (catch_up_.has_value()) next = std::min(next, catch_up_->deadline());
  if (Ticks()) next = std::min(next, now_ + kTick);
  if (publish_.has_value() && publish_->stage != RunningPublish::Stage::kRunning) {
    const bool waiting = publish_->stage == RunningPublish::Stage::kWaiting;
    next = std::min(next, waiting && Grace() > now_ ? Grace() : publish_->deadline);
  }
  return next;
}

void Coordinator::Impl::Log(action::Log::Severity severity, std::string text) {
  // An agent that is refused tries again every second: once is enough. A version that fails is told every time.
  if (severity != action::Log::kError && !history_.empty() && history_.back().text == text) return;
  history_.push_back({now_, severity, text});
  while (history_.size() > static_cast<size_t>(std::max(1, options_.event_history))) history_.pop_front();
  out_.push_back(action::Log{severity, std::move(text)});
}

// Sends what a round decided, and notes who works on what. Members that are gone get nothing.
void Coordinator::Impl::Take(Actions actions) {
  for (Action& action : actions) {
    if (const auto* commit = std::get_if<action::SendCommit>(&action)) {
      Member* member = group_.Find(commit->member);
      if (member == nullptr) continue;
      member->applies = ServedVersion{commit->version, commit->digest};
      NotePhase(*member, MemberPhase::kPause);
      out_.push_back(std::move(action));
    } else if (const auto* abort = std::get_if<action::SendAbort>(&action)) {
      Member* member = group_.Find(abort->member);
      if (member == nullptr) continue;
      out_.push_back(std::move(action));
      LeaveRound(*member);
    }
  }
}

// What a message implies is known at once; between messages, heartbeats say more.
void Coordinator::Impl::NotePhase(Member& member, MemberPhase phase) {
  member.progress.phase = phase;
  member.progress.bucket = -1;
}

void Coordinator::Impl::LeaveRound(Member& member) {
  member.round = 0;
  member.applies.reset();
  if (member.catalog_due) out_.push_back(action::SendCatalog{member.id});
  member.catalog_due = false;
}

// A member may be in both rounds: applied in a catch-up that others still apply, and taking part in the next publish.
template <typename Call>
void Coordinator::Impl::InRoundOf(MemberId member, Call call) {
  if (catch_up_.has_value() && catch_up_->Has(member)) {
    Take(call(*catch_up_));
    FollowCatchUp();
  }
  if (round_.has_value() && round_->Has(member)) {
    Take(call(*round_));
    FollowPublish();
  }
}

Member* Coordinator::Impl::Heard(MemberId id) {
  Member* member = group_.Find(id);
  if (member == nullptr) return nullptr;
  member->last_seen = now_;
  member->forgiven = false;
  return member;
}

// ---- catalog

void Coordinator::Impl::On(const event::CatalogRegistered& event) {
  const bool same = plan_.has_value() && plan_->plan_hash == event.plan.plan_hash &&
                    plan_->catalog_fingerprint == event.plan.catalog_fingerprint;
  ChangeCatalog("the trainer registered its memory again");
  plan_ = event.plan;
  first_catalog_ = std::min(first_catalog_, now_);
  Log(action::Log::kInfo,
      absl::StrFormat("catalog registered: %s (%s quantized), %s on the wire, plan %s",
                      Counted(plan_->tensors, "tensor"), FormatCount(plan_->quantized_tensors),
                      FormatBytes(static_cast<double>(plan_->wire_bytes)), plan_->plan_hash.ShortHex()));
  if (!same) AnnounceCatalog("it has not confirmed the new catalog yet");
}

void Coordinator::Impl::On(const event::CatalogGone& event) {
  if (!plan_.has_value()) return;
  ChangeCatalog(absl::StrCat("the trainer's registration ended: ", event.reason));
  plan_.reset();
  Log(action::Log::kWarn, absl::StrCat("catalog gone: ", event.reason));
  AnnounceCatalog(kNoCatalog);
}

// A registration owns the memory and the retained copy. What is being read from them stops; a version that was released
// goes on from what the source has encoded.
void Coordinator::Impl::ChangeCatalog(const std::string& why) {
  CancelCatchUp(absl::AbortedError(why));
  if (publish_.has_value() && !publish_->content.has_value()) {
    AbortPublish(absl::AbortedError(absl::StrCat("version ", publish_->version, " was not released when ", why,
                                                 "; register and publish it again")));
  }
  retained_ = {};
  session_ = {};
}

void Coordinator::Impl::AnnounceCatalog(const std::string& not_ready_reason) {
  for (auto& [id, member] : group_.members()) {
    member.ready = false;
    member.reason = not_ready_reason;
    member.catalog_due = member.round != 0;
    if (!member.catalog_due) out_.push_back(action::SendCatalog{id});
  }
}

// ---- members come, speak and go

void Coordinator::Impl::On(const event::Joined& event) {
  if (group_.Find(event.member) != nullptr) {
    out_.push_back(action::Refuse{event.member, absl::InvalidArgumentError("joined twice on one stream"), true});
    LoseMember(event.member, "it joined twice on one stream");
    return;
  }
  const Group::Verdict verdict = group_.Judge(now_, event.info);
  if (!verdict.status.ok()) {
    out_.push_back(action::Refuse{event.member, verdict.status, verdict.retry});
    Log(action::Log::kWarn, std::string(verdict.status.message()));
    return;
  }
  if (verdict.former.has_value()) {
    out_.push_back(action::Disconnect{*verdict.former, "replaced by a newer connection of the same name"});
    LoseMember(*verdict.former, "replaced by a newer connection of the same name");
  }
  Member& member = group_.Add(now_, event.member, event.info);
  fences_.Joined(event.info.name, event.info.incarnation);
  member.fenced = fences_.WhyFenced(event.info.name);
  if (!plan_.has_value()) member.reason = kNoCatalog;
  former_group_ = std::max<int64_t>(former_group_, event.info.group);
  NoteClaim(member, event.info.serving);
  out_.push_back(action::SendWelcome{event.member, committed_});
  if (plan_.has_value()) out_.push_back(action::SendCatalog{event.member});
  Log(action::Log::kInfo, absl::StrFormat("%s joined from %s, pid %d, serving version %d", Describe(member),
                                          event.info.host, event.info.pid, event.info.serving.version));
}

void Coordinator::Impl::On(const event::ReadyChanged& event) {
  Member* member = Heard(event.member);
  if (member == nullptr) return;
  const bool was_ready = member->ready;
  const std::string former_reason = std::exchange(member->reason, event.ready ? "" : event.reason);
  member->engine = event.engine;
  member->torn = event.torn;
  if (event.ready && !event.torn && event.serving == committed_) member->last_error.clear();
  if (event.ready && !plan_.has_value()) {
    member->reason = kNoCatalog;
  } else if (event.ready && event.plan_hash != plan_->plan_hash) {
    member->reason = absl::StrFormat(
        "its plan %s is not the trainer's %s: recipe rules, bucket size and software version must be the same on both",
        event.plan_hash.ShortHex(), plan_->plan_hash.ShortHex());
  }
  member->ready = event.ready && member->reason.empty();
  if (!member->ready && member->reason.empty()) member->reason = "it gave no reason";
  if (member->ready && !was_ready) Log(action::Log::kInfo, Describe(*member) + " is ready");
  if (!member->ready && (was_ready || member->reason != former_reason)) {
    // On its way to ready it is news, afterwards it is trouble.
    Log(was_ready ? action::Log::kWarn : action::Log::kInfo,
        absl::StrCat(Describe(*member), " is not ready: ", member->reason));
  }
  NoteClaim(*member, event.serving);
}

void Coordinator::Impl::On(const event::HeartbeatSeen& event) {
  Member* member = Heard(event.member);
  if (member == nullptr) return;
  member->progress = event;
  if (round_.has_value()) round_->Heartbeat(now_, event);
  if (catch_up_.has_value()) catch_up_->Heartbeat(now_, event);
  // It was given up while applying, and is done with it: from here on it can be asked again.
  const bool running = (round_.has_value() && round_->epoch() == member->round) ||
                       (catch_up_.has_value() && catch_up_->epoch() == member->round);
  const bool done = event.epoch != member->round || event.phase == MemberPhase::kIdle;
  if (member->applies.has_value() && !running && done) LeaveRound(*member);
}

void Coordinator::Impl::On(const event::Staged& event) {
  Member* member = Heard(event.member);
  if (member == nullptr) return;
  if (event.epoch == member->round) NotePhase(*member, MemberPhase::kStaged);
  InRoundOf(event.member, [&](Round& round) { return round.Staged(now_, event); });
}

void Coordinator::Impl::On(const event::Applied& event) {
  Member* member = Heard(event.member);
  if (member == nullptr || !member->applies.has_value() || event.epoch != member->round ||
      event.version != member->applies->version) {
    return;  // of a former epoch, or never asked for
  }
  if (event.digest == member->applies->digest) {
    // That it takes a version alone does not show that it holds up nobody.
    if (round_.has_value() && round_->Has(event.member)) fences_.Applied(member->info.name);
    member->info.serving = *member->applies;
    member->torn = false;
    member->last_error.clear();
  } else {
    member->torn = true;
    member->info.serving = {};
    member->last_error = absl::StrFormat("applied content %s as version %d, which is %s", event.digest.ShortHex(),
                                         event.version, member->applies->digest.ShortHex());
  }
  LeaveRound(*member);
  InRoundOf(event.member, [&](Round& round) { return round.Applied(now_, event); });
}

void Coordinator::Impl::On(const event::Failed& event) {
  Member* member = Heard(event.member);
  if (member == nullptr) return;
  const bool current = member->round != 0 && event.epoch == member->round;
  if (event.torn) {
    member->torn = true;
    member->info.serving = {};  // it says so by this alone
  }
  if (event.torn || current) member->last_error = std::string(event.status.message());
  if (!current) return;
  LeaveRound(*member);
  InRoundOf(event.member, [&](Round& round) { return round.Failed(now_, event); });
}

void Coordinator::Impl::On(const event::Left& event) {
  const Member* member = group_.Find(event.member);
  if (member == nullptr) return;
  Log(action::Log::kInfo, absl::StrCat(Describe(*member), " left: ", event.reason));
  group_.Remove(event.member);
  Recall();
  TellRounds({{event.member, absl::StrCat("left: ", event.reason)}});
}

void Coordinator::Impl::On(const event::Lost& event) { LoseMember(event.member, event.reason); }

void Coordinator::Impl::LoseMember(MemberId id, const std::string& reason) {
  ListAsLost(id, reason);
  TellRounds({{id, reason}});
}

void Coordinator::Impl::ListAsLost(MemberId id, const std::string& reason) {
  const Member* member = group_.Find(id);
  if (member == nullptr) return;
  std::string detail = reason;
  if (member->round != 0) {
    absl::StrAppend(&detail, " (epoch ", member->round, ", phase ",
                    std::string(MemberPhaseName(member->progress.phase)));
    if (member->progress.bucket >= 0) absl::StrAppend(&detail, ", bucket ", member->progress.bucket);
    absl::StrAppendFormat(&detail, ", last heard of %s before)", Seconds(now_ - member->last_seen));
  }
  Log(action::Log::kWarn, absl::StrCat("lost ", Describe(*member), ": ", detail));
  group_.Lose(now_, id, detail);
  Recall();
}

// ---- status

StatusSnapshot Coordinator::Impl::Snapshot(absl::Time now) const {
  StatusSnapshot snapshot;
  snapshot.job = options_.job;
  snapshot.epoch = epoch_;
  snapshot.policy = options_.quorum > 0 ? absl::StrCat("quorum: ", options_.quorum) : "all";
  snapshot.min_replicas = options_.min_replicas;
  snapshot.backend = options_.backend;
  snapshot.plan = plan_;
  snapshot.committed = committed_;
  snapshot.last_report = last_report_;
  if (last_report_.has_value()) snapshot.last_report_age = now - last_report_time_;
  const PlanInfo* plan = publish_.has_value() ? &publish_->plan : plan_.has_value() ? &*plan_ : nullptr;
  snapshot.members = group_.Status(now, committed_, plan == nullptr ? 0 : static_cast<double>(plan->wire_bytes));
  if (plan_.has_value() && !publish_.has_value() && retained_ != committed_) {
    for (MemberStatus& member : snapshot.members) {
      const bool waits = member.state == "ready" && member.serving != committed_ && member.last_error.empty();
      if (waits)
        member.last_error = absl::StrCat("the source holds no copy of version ", committed_.version, ": publish");
    }
  }
  snapshot.events.assign(history_.begin(), history_.end());
  const Round* round = round_.has_value() ? &*round_ : catch_up_.has_value() ? &*catch_up_ : nullptr;
  if (publish_.has_value() && !round_.has_value()) {
    const bool checking = publish_->stage == RunningPublish::Stage::kChecking;
    snapshot.round = RoundStatus{publish_->version, checking ? "checking" : "waiting", now - publish_->requested};
  } else if (round != nullptr) {
    snapshot.round = RoundStatus{round->version(),
                                 round->phase() == RoundPhase::kTransfer ? "transfer" : "apply",
                                 now - (round_.has_value() ? publish_->requested : round->begun()),
                                 !round_.has_value(),
                                 round->replicas(),
                                 round->StagedReplicas(),
                                 round->AppliedReplicas()};
  }
  Judge(snapshot);
  return snapshot;
}

}  // namespace wsync
