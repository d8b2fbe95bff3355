// The engine's half of the controller: who waits for a plan, who is attached, and what it says.
#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/clock.h"
#include "server/rollout/sink_controller.h"
#include "server/rpc/log.h"

namespace wsync {
namespace {

// How long an attachment without an update stream is kept from another engine: a client opens it at once, and one that
// was killed in between is started again, which must not have to wait for SinkOptions::open_timeout.
constexpr absl::Duration kOpenGrace = absl::Seconds(1);

std::string NewAttachmentId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

absl::Status ShuttingDown() { return absl::UnavailableError("wsync-rollout is shutting down"); }
absl::Status NoSuchAttachment() { return absl::NotFoundError("no such attachment (any more): attach first"); }

}  // namespace

// ---- waiting for a plan

void SinkController::AwaitPlan(Caller caller, PlanDone done) {
  Post([this, caller = std::move(caller), done = std::move(done)] { WaitForPlan(caller, done); });
}

void SinkController::WaitForPlan(Caller caller, PlanDone done) {
  if (draining_) return done(ShuttingDown());
  if (plan_ != nullptr) return done(plan_);
  waiters_.push_back({std::move(caller), std::move(done)});
}

void SinkController::ResolveWaiters() {
  if (plan_ == nullptr) return;
  for (Waiter& waiter : std::exchange(waiters_, {})) waiter.done(plan_);
}

void SinkController::ExpireWaiters(absl::Time now) {
  const auto late = std::stable_partition(waiters_.begin(), waiters_.end(), [now](const Waiter& waiter) {
    return now < waiter.caller.deadline && !waiter.caller.gone->load();
  });
  std::vector<Waiter> expired(std::make_move_iterator(late), std::make_move_iterator(waiters_.end()));
  waiters_.erase(late, waiters_.end());
  for (Waiter& waiter : expired) waiter.done(absl::DeadlineExceededError(WhyNoPlan()));
}

std::string SinkController::WhyNoPlan() const {
  const std::string& coordinator = options_.member.address;
  if (!plan_status_.ok()) return absl::StrCat("no usable plan: ", plan_status_.message());
  if (member_.linked()) {
    return absl::StrCat("no catalog yet: is a trainer registered with the coordinator at ", coordinator, "?");
  }
  return absl::StrCat("no catalog yet: no link to the coordinator at ", coordinator, ": ", member_.last_error());
}

// ---- attaching

absl::Status SinkController::EngineSlotFree() const {
  if (draining_) return ShuttingDown();
  if (!engine_) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("engine ", engine_->name, " is attached to this agent: stop or detach it first"));
}

void SinkController::MakeWayForEngine() {
  if (!engine_ || engine_->attachment_id.empty() || engine_->stream != nullptr) return;
  if (MonotonicNow() - engine_->attached_at < kOpenGrace) return;
  LetEngineGo(absl::AbortedError("it did not open its update stream, and another engine attached"));
}

absl::Time SinkController::NextLook() const {
  const bool watched = engine_ && engine_->process != nullptr && !engine_->attachment_id.empty();
  return watched ? engine_->look_at : absl::InfiniteFuture();
}

void SinkController::WatchEngine() {
  if (!engine_->process->Alive()) return LetEngineGo(absl::AbortedError("its process has ended"));
  engine_->look_at = MonotonicNow() + kClientProcessPoll;
}

void SinkController::Attach(Caller caller, AttachSpec spec, AttachDone done) {
  auto shared = std::make_shared<AttachSpec>(std::move(spec));
  Post([this, caller = std::move(caller), shared, done = std::move(done)] {
    MakeWayForEngine();
    if (absl::Status status = EngineSlotFree(); !status.ok()) return done(status);
    WaitForPlan(caller, [this, caller, shared, done](const absl::StatusOr<std::shared_ptr<const Plan>>& plan) {
      if (!plan.ok()) return done(plan.status());
      StartAttach(caller, std::move(*shared), done);
    });
  });
}

void SinkController::StartAttach(const Caller& caller, AttachSpec spec, AttachDone done) {
  // Asked again: another one may have been waiting for the same plan.
  if (absl::Status status = EngineSlotFree(); !status.ok()) return done(status);
  engine_ = Engine{.name = absl::StrCat(spec.engine, " (pid ", spec.pid, ")")};
  if (auto process = ClientProcess::Open(spec.pid); process.ok()) engine_->process = *std::move(process);
  receiver_.Attach(std::move(spec), [this, caller, done = std::move(done)](const absl::StatusOr<AttachInfo>& info) {
    Post([this, caller, info, done] { FinishAttach(caller, info, done); });
  });
}

void SinkController::FinishAttach(const Caller& caller, const absl::StatusOr<AttachInfo>& info,
                                  const AttachDone& done) {
  absl::Status status = info.status();
  if (status.ok() && draining_) status = ShuttingDown();
  if (status.ok() && caller.gone->load()) status = absl::CancelledError("the engine is gone");
  if (!status.ok()) {
    LogWarn("engine not attached", {{"engine", engine_->name}, {"error", std::string(status.message())}});
    Step(sink::EngineRefused{std::exchange(engine_, std::nullopt)->name, std::string(status.message())});
    if (info.ok()) receiver_.Detach();
    return done(status);
  }
  engine_->attachment_id = NewAttachmentId();
  engine_->attached_at = engine_->look_at = MonotonicNow();
  engine_->bytes_per_version = info->bytes_per_version;
  LogInfo("engine attached", {{"engine", engine_->name}, {"bytes_per_version", absl::StrCat(info->bytes_per_version)}});
  Step(sink::EngineAttached{engine_->name});
  done(Attached{engine_->attachment_id, info->plan_hash, info->bytes_per_version});
}

bool SinkController::IsAttached(const std::string& attachment_id) const {
  return engine_ && !engine_->attachment_id.empty() && engine_->attachment_id == attachment_id;
}

absl::Status SinkController::WhyNotAttached(const std::string& attachment_id) const {
  if (attachment_id.empty() || attachment_id != untold_.attachment_id) return NoSuchAttachment();
  if (absl::IsFailedPrecondition(untold_.why)) return untold_.why;  // the catalog changed: as on an open stream
  return absl::NotFoundError(absl::StrCat("this attachment is over: ", untold_.why.message(), ": attach again"));
}

void SinkController::Detach(std::string attachment_id, std::function<void(absl::Status)> done) {
  Post([this, attachment_id = std::move(attachment_id), done = std::move(done)] {
    if (!IsAttached(attachment_id)) return done(NoSuchAttachment());
    LetEngineGo(absl::OkStatus());
    done(absl::OkStatus());
  });
}

void SinkController::LetEngineGo(const absl::Status& status, bool tell_state) {
  if (!engine_ || engine_->attachment_id.empty()) return;  // one that is still checked is let go when that ends
  const Engine engine = *std::exchange(engine_, std::nullopt);
  const std::string reason(status.ok() ? "it detached" : status.message());
  const LogFields fields = {{"engine", engine.name}, {"reason", reason}};
  status.ok() ? LogInfo("engine detached", fields) : LogWarn("engine let go", fields);
  if (tell_state) Step(sink::EngineLost{reason});
  receiver_.Detach();
  if (engine.stream != nullptr) {
    engine.stream->Finish(status);
  } else if (!status.ok()) {
    untold_ = {engine.attachment_id, status};
  }
}

void SinkController::LetEngineGoIfCut() {
  if (const absl::Status lent = receiver_.lent(); !lent.ok()) LetEngineGo(lent);
}

// ---- the Updates stream

void SinkController::PostHeard(const std::shared_ptr<EngineStream>& stream, std::function<void()> job) {
  Post([stream, job = std::move(job)] {
    job();
    stream->Heard();
  });
}

void SinkController::OpenUpdates(std::string attachment_id, std::shared_ptr<EngineStream> stream) {
  PostHeard(stream, [this, attachment_id = std::move(attachment_id), stream] {
    if (!IsAttached(attachment_id)) return stream->Finish(WhyNotAttached(attachment_id));
    if (engine_->stream != nullptr) {
      return stream->Finish(absl::AlreadyExistsError("this attachment has an update stream already"));
    }
    engine_->stream = stream;
    Step(sink::EngineOpened{});
  });
}

void SinkController::EnginePaused(std::shared_ptr<EngineStream> stream, uint64_t version,
                                  std::optional<EventHandle> after) {
  PostHeard(stream, [this, stream, version, after = std::move(after)] {
    if (engine_stream() != stream.get()) return;
    const absl::Status usable = after.has_value() ? memory_.CheckEvent(*after) : absl::OkStatus();
    if (!usable.ok()) {
      return LetEngineGo(
          absl::Status(usable.code(), absl::StrCat("paused for version ", version, ": ", usable.message())));
    }
    engine_->paused = version;
    engine_->paused_at = after;
    Step(sink::EnginePaused{version});
  });
}

std::optional<EventHandle> SinkController::PausedAt(uint64_t version) const {
  return engine_ && engine_->paused == version ? engine_->paused_at : std::nullopt;
}

void SinkController::EngineAnswers(std::shared_ptr<EngineStream> stream, LayerAnswer answer) {
  auto shared = std::make_shared<LayerAnswer>(std::move(answer));
  PostHeard(stream, [this, stream, shared] {
    if (engine_stream() == stream.get()) receiver_.Answer(std::move(*shared));
  });
}

void SinkController::EngineGone(std::shared_ptr<EngineStream> stream, absl::Status status) {
  Post([this, stream = std::move(stream), status = std::move(status)] {
    if (engine_stream() == stream.get()) LetEngineGo(status);
    stream->Finish(status);
  });
}

}  // namespace wsync
