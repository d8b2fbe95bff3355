#include "server/rollout/sink_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/text.h"

namespace wsync {
namespace {

bool SameFacts(const event::ReadyChanged& a, const event::ReadyChanged& b) {
  return a.ready == b.ready && a.reason == b.reason && a.plan_hash == b.plan_hash && a.engine == b.engine &&
         a.serving == b.serving && a.torn == b.torn;
}

}  // namespace

SinkState::SinkState(SinkOptions options) : options_(options) {}

sink::Actions SinkState::Step(absl::Time now, const sink::Event& event) {
  actions_.clear();
  std::visit([&](const auto& e) { On(now, e); }, event);
  StartLocalApplyIfDue(now);
  ReportReadyIfChanged();
  return std::exchange(actions_, {});
}

absl::Time SinkState::NextDeadline() const {
  absl::Time deadline = absl::InfiniteFuture();
  if (state_ == State::kPause || ReceivesUnpaused()) deadline = pause_deadline_;
  if (engine_ && !engine_->opened) deadline = std::min(deadline, engine_->open_by);
  return deadline;
}

MemberPhase SinkState::phase() const {
  switch (state_) {
    case State::kConnect:
      return MemberPhase::kConnect;
    case State::kReceive:
      return ReceivesUnpaused() ? MemberPhase::kPause : MemberPhase::kReceive;
    case State::kStaged:
      return MemberPhase::kStaged;
    case State::kPause:
      return MemberPhase::kPause;
    case State::kApply:
      return MemberPhase::kApply;
    case State::kIdle:
    case State::kCancel:
      break;
  }
  return MemberPhase::kIdle;
}

std::string SinkState::not_ready() const {
  if (stopping_) return "shutting down";
  if (plan_ == PlanState::kNone) return why_no_engine_.empty() ? "no catalog yet" : "no catalog yet; " + NoEngine();
  if (plan_ == PlanState::kMaking) return "making the plan of the catalog";
  if (plan_ == PlanState::kBad) return std::string(plan_status_.message());
  if (!engine_) return NoEngine();
  if (!engine_->opened) return absl::StrCat("engine ", engine_->name, " has not opened its update stream");
  if (state_ != State::kIdle && round_.epoch == 0) {
    return absl::StrCat("applying version ", round_.version, " from the staging copy");
  }
  return "";
}

std::string SinkState::NoEngine() const {
  return absl::StrCat("no engine attached", why_no_engine_.empty() ? "" : ": ", why_no_engine_);
}

// ---- link and plan

void SinkState::On(absl::Time, const sink::Linked&) {
  linked_ = true;
  last_epoch_ = 0;
  sent_.reset();
  plan_ = PlanState::kNone;  // until this coordinator has announced its own
}

void SinkState::On(absl::Time now, const sink::Unlinked& event) {
  linked_ = false;
  next_begin_.reset();
  round_.orphaned = true;
  // A commit was a decision of the whole group: it is carried out without the coordinator, too.
  const bool committed = state_ == State::kApply || (state_ == State::kPause && !in_place());
  if (!committed) Drop(now, absl::UnavailableError(absl::StrCat("the coordinator is gone: ", event.reason)));
}

void SinkState::On(absl::Time now, const sink::CatalogChanging&) {
  Drop(now, absl::AbortedError("the catalog changed"));
  plan_ = PlanState::kMaking;
}

void SinkState::On(absl::Time now, const sink::CatalogGone&) {
  Drop(now, absl::AbortedError("the trainer took its catalog back"));
  plan_ = PlanState::kNone;
}

void SinkState::On(absl::Time, const sink::PlanReady& event) {
  plan_ = event.status.ok() ? PlanState::kGood : PlanState::kBad;
  plan_status_ = event.status;
  plan_hash_ = event.plan_hash;
  if (event.changed) held_ = {};
}

// ---- the engine

void SinkState::On(absl::Time now, const sink::EngineAttached& event) {
  engine_ = Engine{.name = event.engine, .open_by = now + options_.open_timeout};
  why_no_engine_.clear();
  serving_ = {};
  torn_ = false;
}

void SinkState::On(absl::Time, const sink::EngineOpened&) {
  if (engine_) engine_->opened = true;
}

void SinkState::On(absl::Time now, const sink::EngineLost& event) {
  if (!engine_) return;
  why_no_engine_ = absl::StrCat("engine ", engine_->name, " is gone: ", event.reason);
  const auto why = absl::UnavailableError(why_no_engine_);
  const bool written = in_place() ? (state_ == State::kReceive && !ReceivesUnpaused()) || state_ == State::kStaged
                                  : state_ == State::kApply;
  engine_.reset();
  asked_.reset();
  paused_.reset();
  released_ = absl::OkStatus();
  serving_ = {};
  torn_ = false;
  if (state_ == State::kIdle || state_ == State::kCancel) return;
  ReportFailed(round_.epoch, round_.version, why, written, -1);
  round_.orphaned = true;
  Drop(now, why);
}

void SinkState::On(absl::Time, const sink::EngineRefused& event) {
  if (!engine_) why_no_engine_ = absl::StrCat("engine ", event.engine, " was refused: ", Shortened(event.reason));
}

void SinkState::On(absl::Time now, const sink::EnginePaused& event) {
  if (!engine_ || asked_ != event.version) return;
  asked_.reset();
  paused_ = event.version;
  paused_at_ = now;
  if (WantsPause() && event.version == round_.version) {
    if (state_ == State::kConnect) return;  // in_place: goes on when connected
    if (in_place()) return Do(sink::WriteLive{round_.version});
    state_ = State::kApply;
    return Do(sink::Apply{round_.version});
  }
  if (state_ == State::kCancel && event.version == round_.version) return;  // told when the receiver has ended
  // Nobody needs this pause any more.
  const std::string reason(released_.message());
  if (torn_) {
    Do(sink::TellTorn{event.version, reason});
  } else {
    Do(sink::TellCancelled{event.version, reason});
  }
  paused_.reset();
  if (WantsPause()) AskPause();
}

bool SinkState::WantsPause() const {
  return state_ == State::kPause || (in_place() && (state_ == State::kConnect || state_ == State::kReceive));
}

void SinkState::AskPause() {
  released_ = absl::OkStatus();
  if (asked_ == round_.version) return;  // the engine is at it already
  if (asked_) {                          // first it must answer the older request
    released_ = absl::AbortedError(absl::StrCat("version ", round_.version, " has taken its place"));
    return;
  }
  asked_ = round_.version;
  paused_.reset();
  if (in_place()) {
    Do(sink::TellPrepare{round_.version, true});
  } else {
    Do(sink::TellApply{round_.version});
  }
}

// `Destinations are untouched` is only said to an engine for which that is true.
void SinkState::ReleaseEngine(const absl::Status& why) {
  if (!engine_) return;
  if (asked_ == round_.version) {
    released_ = why;
    return;
  }
  paused_.reset();
  if (torn_) {
    Do(sink::TellTorn{round_.version, std::string(why.message())});
  } else {
    Do(sink::TellCancelled{round_.version, std::string(why.message())});
  }
}

void SinkState::MakeTorn(const absl::Status& why) {
  if (!engine_) return;  // what was torn is gone with it
  torn_ = true;
  serving_ = {};
  Do(sink::TellTorn{round_.version, std::string(why.message())});
}

// ---- a round

bool SinkState::IsRound(uint64_t epoch, uint64_t version) const {
  return state_ != State::kIdle && epoch != 0 && round_.epoch == epoch && round_.version == version;
}

void SinkState::On(absl::Time now, const sink::Begin& event) {
  if (!linked_ || event.epoch < last_epoch_) return;
  last_epoch_ = event.epoch;
  if (const std::string reason = not_ready(); !reason.empty()) return Decline(event, reason);
  round_.orphaned = true;
  Drop(now, absl::AbortedError(absl::StrCat("epoch ", event.epoch, " has begun")));
  if (state_ == State::kIdle) {
    StartRound(now, event);
  } else {
    next_begin_ = event;
  }
}

// The coordinator was told, and had not read it when it sent this: the version goes on without this sink.
void SinkState::Decline(const sink::Begin& begin, const std::string& why) {
  ReportFailedIn(MemberPhase::kConnect, begin.epoch, begin.version, absl::UnavailableError(why), false, -1);
}

void SinkState::StartRound(absl::Time now, const sink::Begin& begin) {
  if (const std::string reason = not_ready(); !reason.empty()) return Decline(begin, reason);
  if (begin.plan_hash != plan_hash_) {
    const std::string reason = absl::StrCat("the round's plan is ", begin.plan_hash.Hex(), ", this sink's is ",
                                            plan_hash_.Hex(), ": both sides must run the same wsync version");
    return ReportFailed(begin.epoch, begin.version, absl::FailedPreconditionError(reason), false, -1);
  }
  round_ = Round{.epoch = begin.epoch, .version = begin.version};
  state_ = State::kConnect;
  engine_->offered = true;
  if (in_place()) {
    pause_deadline_ = now + options_.pause_timeout;
    AskPause();
  } else {
    Do(sink::TellPrepare{round_.version, false});
  }
  Do(sink::Connect{begin});
}

void SinkState::On(absl::Time now, const sink::Connected& event) {
  if (state_ == State::kCancel) {
    ReleaseEngine(round_.cancelled);
    return EndRound(now);
  }
  if (state_ != State::kConnect) return;
  if (!event.status.ok()) return Fail(now, event.status, false);
  StartReceive();
}

void SinkState::StartReceive() {
  state_ = State::kReceive;
  held_ = {};  // the staging copy is about to be overwritten
  Do(sink::Receive{round_.version});
  if (in_place() && !ReceivesUnpaused()) Do(sink::WriteLive{round_.version});
}

void SinkState::On(absl::Time now, const sink::Received& event) {
  if (state_ == State::kCancel) {
    if (in_place() && event.wrote) {
      MakeTorn(round_.cancelled);
    } else {
      ReleaseEngine(round_.cancelled);
    }
    return EndRound(now);
  }
  if (state_ != State::kReceive) return;
  if (!event.status.ok()) return Fail(now, event.status, in_place() && event.wrote, event.bucket);
  state_ = State::kStaged;
  round_.digest = event.digest;
  round_.timings = event.timings;
  Do(sink::Report{event::Staged{0, round_.epoch, round_.version, round_.digest, round_.timings}});
}

void SinkState::On(absl::Time now, const sink::Commit& event) {
  if (state_ != State::kStaged || !IsRound(event.epoch, event.version)) return;
  if (event.digest != round_.digest) {
    const auto why = absl::DataLossError(absl::StrCat("the commit of version ", round_.version, " says content ",
                                                      event.digest.Hex(), ", received was ", round_.digest.Hex()));
    return Fail(now, why, in_place());
  }
  if (in_place()) return Serve(now);
  held_ = {round_.version, round_.digest};
  state_ = State::kPause;
  pause_deadline_ = now + options_.pause_timeout;
  AskPause();
}

void SinkState::On(absl::Time now, const sink::Abort& event) {
  if (next_begin_ && next_begin_->epoch == event.epoch) next_begin_.reset();
  if (!IsRound(event.epoch, event.version)) return;
  round_.orphaned = true;
  Drop(now, event.status);
}

void SinkState::On(absl::Time now, const sink::ApplyDone& event) {
  if (state_ != State::kApply) return;
  if (!engine_) return EndRound(now);
  round_.timings.apply = event.apply;
  if (!event.status.ok()) return Fail(now, event.status, event.wrote);
  Serve(now);
}

void SinkState::Serve(absl::Time now) {
  serving_ = {round_.version, round_.digest};
  torn_ = false;
  round_.timings.pause = now - paused_at_;
  paused_.reset();
  Do(sink::TellApplied{round_.version, round_.digest, round_.timings});
  if (linked_ && !round_.orphaned && round_.epoch != 0) {
    Do(sink::Report{event::Applied{0, round_.epoch, round_.version, round_.digest, round_.timings}});
    if (sent_) sent_->serving = serving_, sent_->torn = false;
  }
  EndRound(now);
}

void SinkState::Fail(absl::Time now, const absl::Status& why, bool torn, int64_t bucket) {
  const bool report = !round_.orphaned;
  if (report) ReportFailed(round_.epoch, round_.version, why, torn, bucket);
  if (torn) {
    MakeTorn(why);
    if (report && sent_) sent_->serving = serving_, sent_->torn = torn_;  // it was just said
  } else {
    ReleaseEngine(why);
  }
  EndRound(now);
}

// Ends the round without success and without a word to the coordinator.
void SinkState::Drop(absl::Time now, const absl::Status& why) {
  switch (state_) {
    case State::kIdle:
    case State::kCancel:
      return;
    case State::kApply:  // half a copy would be torn: it runs to its end
      round_.orphaned = true;
      return;
    case State::kConnect:
    case State::kReceive:
      Do(sink::Cancel{why});
      round_.cancelled = why;
      state_ = State::kCancel;
      return;
    case State::kStaged:
    case State::kPause:
      Do(sink::Cancel{why});
      if (in_place() && state_ == State::kStaged) {
        MakeTorn(why);
      } else {
        ReleaseEngine(why);
      }
      return EndRound(now);
  }
}

void SinkState::EndRound(absl::Time now) {
  state_ = State::kIdle;
  round_ = {};
  if (const auto begin = std::exchange(next_begin_, std::nullopt)) StartRound(now, *begin);
}

// An engine that restarted lost its weights; the staging copy still has them.
void SinkState::StartLocalApplyIfDue(absl::Time now) {
  if (state_ != State::kIdle || stopping_ || held_.version == 0 || plan_ == PlanState::kMaking) return;
  if (!engine_ || !engine_->opened || engine_->offered) return;
  engine_->offered = true;
  round_ = Round{.version = held_.version, .digest = held_.digest};
  state_ = State::kPause;
  pause_deadline_ = now + options_.pause_timeout;
  AskPause();
}

void SinkState::On(absl::Time now, const sink::Stop&) {
  stopping_ = true;
  next_begin_.reset();
  if (state_ != State::kApply) Drop(now, absl::UnavailableError("wsync-rollout is shutting down"));
}

void SinkState::On(absl::Time now, const sink::Tick&) {
  if (engine_ && !engine_->opened && now >= engine_->open_by) {
    const std::string waited = absl::FormatDuration(options_.open_timeout);
    Do(sink::Detach{absl::DeadlineExceededError(absl::StrCat(
        "engine ", engine_->name, " attached but did not open Updates within ", waited, ": attach again"))});
    On(now, sink::EngineLost{absl::StrCat("it did not open its update stream within ", waited)});
  }
  if ((state_ != State::kPause && !ReceivesUnpaused()) || now < pause_deadline_) return;
  const auto why =
      absl::DeadlineExceededError(absl::StrCat("engine ", engine_->name, " did not pause for version ", round_.version,
                                               " within ", absl::FormatDuration(options_.pause_timeout)));
  if (state_ == State::kPause) return Fail(now, why, false);
  ReportFailedIn(MemberPhase::kPause, round_.epoch, round_.version, why, false, -1);
  round_.orphaned = true;
  Drop(now, why);
}

// ---- what the coordinator hears

void SinkState::ReportFailed(uint64_t epoch, uint64_t version, const absl::Status& why, bool torn, int64_t bucket) {
  MemberPhase at = IsRound(epoch, version) ? phase() : MemberPhase::kIdle;
  if (state_ == State::kReceive && at == MemberPhase::kPause)
    at = MemberPhase::kReceive;  // it is not the pause that failed
  ReportFailedIn(at, epoch, version, why, torn, bucket);
}

void SinkState::ReportFailedIn(MemberPhase phase, uint64_t epoch, uint64_t version, const absl::Status& why, bool torn,
                               int64_t bucket) {
  if (!linked_ || epoch == 0) return;
  Do(sink::Report{event::Failed{0, epoch, version, phase, why, torn, bucket}});
}

event::ReadyChanged SinkState::Facts() const {
  event::ReadyChanged facts;
  facts.reason = not_ready();
  facts.ready = facts.reason.empty();
  if (plan_ == PlanState::kGood || plan_ == PlanState::kBad) facts.plan_hash = plan_hash_;
  if (engine_) facts.engine = engine_->name;
  facts.serving = serving_;
  facts.torn = torn_;
  return facts;
}

void SinkState::ReportReadyIfChanged() {
  if (!linked_) return;
  event::ReadyChanged facts = Facts();
  if (sent_ && SameFacts(*sent_, facts)) return;
  sent_ = facts;
  Do(sink::Report{std::move(facts)});
}

}  // namespace wsync
