#include "server/rollout/sink_controller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/rollout/sink_messages.h"
#include "server/rpc/convert.h"
#include "server/rpc/log.h"

namespace wsync {
namespace {

constexpr char kShuttingDown[] = "wsync-rollout is shutting down";
// For the coordinator to close the stream after a goodbye; one round trip, really.
constexpr absl::Duration kGoodbyeTimeout = absl::Milliseconds(500);
// How often a sink without room for its plan tries again: whoever has the memory may give it back at any time, and
// nobody should have to restart the agent for that.
constexpr absl::Duration kRoomPeriod = absl::Seconds(1);

// Phases that no message to the coordinator implies: it hears of them by a heartbeat at once, so that it can name them
// when this process dies in the middle of one.
bool IsUnannounced(MemberPhase phase) { return phase == MemberPhase::kReceive || phase == MemberPhase::kApply; }

std::string Ms(absl::Duration duration) { return absl::StrFormat("%.1f", absl::ToDoubleMilliseconds(duration)); }

}  // namespace

SinkController::SinkController(SinkControllerOptions options, Backend* backend)
    : options_(std::move(options)),
      memory_(backend->memory()),
      thread_(std::make_shared<SerialThread>("wsync-control")),
      state_(options_.sink),
      receiver_(backend, options_.receiver),
      member_(options_.member, thread_, this) {
  Post([this] { thread_->SetTimer({[this] { return NextDeadline(); }, [this] { Tick(); }}); });
}

void SinkController::Start() {
  Post([this] { member_.Start(MonotonicNow()); });
}

SinkController::~SinkController() {
  thread_->Stop();
  receiver_.Stop();
}

void SinkController::RunAndWait(absl::Time deadline, std::function<void(std::function<void()>)> job) {
  struct Latch {
    Mutex mu;
    CondVar changed;
    bool done = false;
  };
  auto latch = std::make_shared<Latch>();
  Post([job = std::move(job), latch] {
    job([latch] {
      MutexLock lock(&latch->mu);
      latch->done = true;
      latch->changed.SignalAll();
    });
  });
  MutexLock lock(&latch->mu);
  while (!latch->done && MonotonicNow() < deadline) latch->changed.WaitUntil(&latch->mu, deadline);
}

void SinkController::Drain(absl::Duration grace) {
  RunAndWait(MonotonicNow() + grace, [this](std::function<void()> finished) {
    draining_ = true;
    for (Waiter& waiter : std::exchange(waiters_, {})) waiter.done(absl::UnavailableError(kShuttingDown));
    on_idle_ = std::move(finished);
    Step(sink::Stop{});
  });
  RunAndWait(MonotonicNow() + 2 * kGoodbyeTimeout, [this](std::function<void()> finished) {
    member_.Leave("shutting down", kGoodbyeTimeout, std::move(finished));
  });
  RunAndWait(MonotonicNow() + kGoodbyeTimeout, [this](const std::function<void()>& finished) {
    LetEngineGo(absl::UnavailableError(kShuttingDown));
    finished();
  });
}

absl::Status SinkController::Look(absl::Time now) {
  absl::Status status = thread_->Look(now);
  status.Update(receiver_.Look(now));
  return status;
}

absl::Time SinkController::NextDeadline() const {
  absl::Time next = std::min({state_.NextDeadline(), member_.NextDeadline(), ask_for_room_at_, NextLook()});
  for (const Waiter& waiter : waiters_) next = std::min(next, waiter.caller.deadline);
  return next;
}

void SinkController::Tick() {
  const absl::Time now = MonotonicNow();
  member_.Tick(now);
  if (now >= state_.NextDeadline()) Step(sink::Tick{});
  if (now >= ask_for_room_at_) {
    ask_for_room_at_ = absl::InfiniteFuture();
    receiver_.AskForRoomAgain([this, number = catalogs_](const PlanResult& result) {
      Post([this, number, result] { OnPlan(number, result); });
    });
  }
  ExpireWaiters(now);
  if (now >= NextLook()) WatchEngine();
}

// ---- the coordinator's side

void SinkController::Introduce(v1::Join* join) {
  *join->mutable_serving() = ToProto(state_.serving());
  join->set_group(group_);
}

v1::Heartbeat SinkController::MakeHeartbeat() {
  v1::Heartbeat beat;
  beat.set_phase(ToProto(state_.phase()));
  beat.set_bucket(receiver_.bucket());
  if (state_.phase() == MemberPhase::kIdle) return beat;
  beat.set_epoch(state_.epoch());
  beat.set_version(state_.version());
  beat.set_received_bytes(static_cast<uint64_t>(receiver_.received_bytes()));
  return beat;
}

void SinkController::OnLinked() { Step(sink::Linked{}); }

void SinkController::OnUnlinked(const std::string& reason) { Step(sink::Unlinked{reason}); }

void SinkController::OnCatalog(absl::StatusOr<AnnouncedCatalog> catalog) {
  (void)WSYNC_FAILPOINT("rollout.catalog");
  const uint64_t number = ++catalogs_;
  ask_for_room_at_ = absl::InfiniteFuture();
  plan_.reset();
  plan_status_ = catalog.status();
  if (!catalog.ok()) {
    LogError("the coordinator's catalog is unusable", {{"error", std::string(catalog.status().message())}});
    Step(sink::CatalogChanging{});
    return Step(sink::PlanReady{.status = catalog.status(), .changed = false});
  }
  if (catalog->tensors.empty()) return Step(sink::CatalogGone{});
  Step(sink::CatalogChanging{});
  receiver_.SetCatalog(*std::move(catalog), [this, number](const PlanResult& result) {
    Post([this, number, result] { OnPlan(number, result); });
  });
}

void SinkController::OnPlan(uint64_t catalog, const PlanResult& result) {
  plan_changed_ |= result.changed;
  if (!result.attachment.ok()) {
    LetEngineGo(absl::FailedPreconditionError(
        absl::StrCat("the catalog changed: attach again, or register the names and shapes that it attached for: ",
                     result.attachment.message())));
  }
  if (catalog != catalogs_) return;
  const bool told = absl::IsResourceExhausted(result.status) && absl::IsResourceExhausted(plan_status_);
  if (absl::IsResourceExhausted(result.status)) ask_for_room_at_ = MonotonicNow() + kRoomPeriod;
  plan_ = result.plan;
  plan_status_ = result.status;
  if (told) {
    // Once a second the same again.
  } else if (!result.status.ok()) {
    LogError("cannot take part", {{"error", std::string(result.status.message())}});
  } else if (result.changed) {
    LogInfo("plan ready", {{"plan", result.plan_hash.ShortHex()},
                           {"tensors", absl::StrCat(plan_->catalog().tensors().size())},
                           {"buckets", absl::StrCat(plan_->buckets().size())},
                           {"bytes", absl::StrCat(plan_->image_bytes())}});
  }
  Step(sink::PlanReady{result.status, result.plan_hash, std::exchange(plan_changed_, false)});
  ResolveWaiters();
}

// Why what the engine serves cannot be compared with the staging copy now.
absl::Status SinkController::CannotVerify() const {
  if (state_.torn()) return absl::FailedPreconditionError("its weights are torn");
  if (state_.serving().version == 0) return absl::FailedPreconditionError("it serves nothing");
  if (state_.busy()) {
    return absl::UnavailableError(absl::StrCat("it is working on version ", state_.version(), ": ask again"));
  }
  if (options_.sink.mode == SinkMode::kStaged && state_.held() != state_.serving()) {
    return absl::UnavailableError(
        "its staging copy was overwritten by a version that was not committed: ask again "
        "after the next one");
  }
  return absl::OkStatus();
}

void SinkController::OnVerify(uint64_t id) {
  const ServedVersion serving = state_.serving();
  const auto answer = [this, id, serving](const absl::StatusOr<Hash128>& digest) {
    v1::MemberMessage message;
    v1::Verified* verified = message.mutable_verified();
    verified->set_id(id);
    *verified->mutable_serving() = ToProto(serving);
    if (digest.ok()) *verified->mutable_content_digest() = ToProto(*digest);
    verified->set_code(static_cast<int32_t>(digest.status().code()));
    verified->set_error(std::string(digest.status().message()));
    if (absl::IsDataLoss(digest.status())) {
      LogError("the engine's weights are not what was sent",
               {{"version", absl::StrCat(serving.version)}, {"error", std::string(digest.status().message())}});
    }
    member_.Send(std::move(message));
  };
  if (absl::Status status = CannotVerify(); !status.ok()) return answer(status);
  receiver_.Verify([this, serving, answer](const absl::StatusOr<Hash128>& digest) {
    Post([this, serving, answer, digest] {
      const bool changed = state_.serving() != serving;
      answer(changed ? absl::AbortedError("it serves another version by now: ask again") : digest);
      LetEngineGoIfCut();
    });
  });
}

void SinkController::OnRoundMessage(const v1::CoordinatorMessage& message) {
  if (message.has_verify()) return OnVerify(message.verify().id());
  if (message.has_begin()) (void)WSYNC_FAILPOINT("rollout.begin");
  if (message.has_commit()) (void)WSYNC_FAILPOINT("rollout.commit");
  if (message.has_begin()) group_ = message.begin().group();
  if (const std::optional<sink::Event> event = FromProto(message)) Step(*event);
}

// ---- the state's actions

void SinkController::Step(const sink::Event& event) {
  const absl::Time now = MonotonicNow();
  const MemberPhase before = state_.phase();
  const sink::Actions actions = state_.Step(now, event);
  for (const sink::Action& action : actions) std::visit([this](const auto& a) { Do(a); }, action);
  // Engine and coordinator do not wait for a line in a file.
  for (const sink::Action& action : actions) {
    if (const auto* applied = std::get_if<sink::TellApplied>(&action)) LogApplied(*applied);
  }
  if (state_.phase() != before && IsUnannounced(state_.phase())) member_.Beat(now);
  if (on_idle_ && !state_.busy()) std::exchange(on_idle_, nullptr)();
}

void SinkController::StepWithEngine(const sink::Event& event) {
  Step(event);
  LetEngineGoIfCut();
}

void SinkController::Do(const sink::Report& action) {
  if (std::holds_alternative<event::Staged>(action.message)) (void)WSYNC_FAILPOINT("rollout.staged");
  if (std::holds_alternative<event::Applied>(action.message)) (void)WSYNC_FAILPOINT("rollout.applied");
  if (const auto* failed = std::get_if<event::Failed>(&action.message)) {
    LogWarn(absl::StrCat("version ", failed->version, failed->torn ? " failed and left the replica torn" : " failed"),
            {{"version", absl::StrCat(failed->version)},
             {"epoch", absl::StrCat(failed->epoch)},
             {"phase", std::string(MemberPhaseName(failed->phase))},
             {"error", std::string(failed->status.message())}});
  }
  member_.Send(ToProto(action));
}

void SinkController::Do(const sink::Connect& action) {
  const sink::Begin& begin = action.begin;
  SessionSpec session{begin.session, begin.rank, begin.world, begin.data_address, begin.wide};
  if (session.root_address.empty()) session.root_address = options_.member.address;
  receiver_.Connect(std::move(session), [this](const sink::Connected& result) { Post([=, this] { Step(result); }); });
}

void SinkController::Do(const sink::Receive& action) {
  receiver_.Receive([this](const sink::Received& result) { Post([=, this] { StepWithEngine(result); }); },
                    {.ready = [this, version = action.version](
                                  const LayerReady& layer) { Post([=, this] { OnLayer(version, layer); }); },
                     .wanted = [this, version = action.version](
                                   const LayerWanted& layer) { Post([=, this] { OnLayerWanted(version, layer); }); }});
}

void SinkController::Do(const sink::WriteLive& action) { receiver_.EnginePaused(PausedAt(action.version)); }

// What concerns layers is posted before the end of the same Receive, so the state is still at it, unless it was called
// off.
EngineStream* SinkController::ReceivingStream(uint64_t version) const {
  return state_.phase() == MemberPhase::kReceive && state_.version() == version ? engine_stream() : nullptr;
}

void SinkController::OnLayer(uint64_t version, const LayerReady& layer) {
  if (EngineStream* stream = ReceivingStream(version)) stream->LayerComplete(version, layer);
}

void SinkController::OnLayerWanted(uint64_t version, const LayerWanted& layer) {
  if (EngineStream* stream = ReceivingStream(version)) stream->WantLayer(version, layer);
}

void SinkController::Do(const sink::Apply& action) {
  receiver_.Apply([this](const sink::ApplyDone& result) { Post([=, this] { StepWithEngine(result); }); },
                  PausedAt(action.version));
}

void SinkController::Do(const sink::Cancel& action) { receiver_.Cancel(action.why); }

void SinkController::Do(const sink::TellPrepare& action) {
  if (action.in_place) (void)WSYNC_FAILPOINT("rollout.pause");
  if (EngineStream* stream = engine_stream()) stream->Prepare(action);
}

void SinkController::Do(const sink::TellApply& action) {
  (void)WSYNC_FAILPOINT("rollout.pause");
  if (EngineStream* stream = engine_stream()) stream->Apply(action);
}

void SinkController::Do(const sink::TellApplied& action) {
  if (EngineStream* stream = engine_stream()) stream->Applied(action);
}

void SinkController::LogApplied(const sink::TellApplied& action) const {
  LogInfo(absl::StrCat("version ", action.version, " applied"),
          {{"version", absl::StrCat(action.version)},
           {"bytes", absl::StrCat(engine_ ? engine_->bytes_per_version : 0)},
           {"content", action.digest.ShortHex()},
           {"transfer_ms", Ms(action.timings.transfer)},
           {"check_ms", Ms(action.timings.check)},
           {"apply_ms", Ms(action.timings.apply)},
           {"pause_ms", Ms(action.timings.pause)}});
}

void SinkController::Do(const sink::TellTorn& action) {
  if (EngineStream* stream = engine_stream()) stream->Torn(action);
  LogError("the engine's weights are torn: it stays paused until a complete version",
           {{"version", absl::StrCat(action.version)}, {"reason", action.reason}});
}

void SinkController::Do(const sink::TellCancelled& action) {
  if (EngineStream* stream = engine_stream()) stream->Cancelled(action);
  LogWarn(absl::StrCat("version ", action.version, " cancelled"),
          {{"version", absl::StrCat(action.version)}, {"reason", action.reason}});
}

void SinkController::Do(const sink::Detach& action) { LetEngineGo(action.why, false); }

}  // namespace wsync
