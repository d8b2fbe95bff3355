#include "server/rollout/receiver.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/core/ring.h"
#include "server/rollout/receive_pipeline.h"

namespace wsync {
namespace {

// The sink's state, which knows the engine, gives up long before.
constexpr absl::Duration kEnginePauseLimit = absl::Minutes(1);
constexpr double kSlowestCopy = 200e6;                     // bytes per second, of a machine that swaps
constexpr absl::Duration kLongestJob = absl::Minutes(10);  // of taking and opening memory

}  // namespace

class Receiver::AtWork {
 public:
  AtWork(Receiver* receiver, const Watched& watched) : receiver_(receiver) { Set(watched); }
  ~AtWork() { Set({}); }
  AtWork(const AtWork&) = delete;
  AtWork& operator=(const AtWork&) = delete;

 private:
  void Set(const Watched& watched) {
    MutexLock lock(&receiver_->mu_);
    receiver_->watched_ = watched;
  }
  Receiver* const receiver_;
};

Receiver::Receiver(Backend* backend, ReceiverOptions options)
    : backend_(backend), options_(options), thread_("wsync-receive") {}

Receiver::~Receiver() { Stop(); }

void Receiver::Stop() {
  Cancel(absl::CancelledError("wsync-rollout is shutting down"));
  {
    MutexLock lock(&mu_);
    detached_through_ = jobs_;
  }
  thread_.Stop();
  std::shared_ptr<Transport> transport;
  {
    MutexLock lock(&mu_);
    transport = std::move(transport_);
  }
  transport.reset();  // before the memory it may still write to
  work_.attachment.reset();
  work_.events.CloseAll();
  work_.memory.reset();
}

// ---- jobs

void Receiver::SetCatalog(AnnouncedCatalog catalog, std::function<void(PlanResult)> done) {
  // std::function wants copyable captures.
  auto shared = std::make_shared<AnnouncedCatalog>(std::move(catalog));
  thread_.Post([this, shared, done = std::move(done)] {
    const AtWork at_work(this, LongJob("taking memory for a catalog"));
    done(UseCatalog(std::move(*shared)));
  });
}

void Receiver::AskForRoomAgain(std::function<void(PlanResult)> done) {
  thread_.Post([this, done = std::move(done)] {
    const AtWork at_work(this, LongJob("taking memory for a catalog"));
    if (work_.wanted != nullptr) done(MakeRoom(work_.wanted));
  });
}

void Receiver::Attach(AttachSpec spec, std::function<void(absl::StatusOr<AttachInfo>)> done) {
  auto shared = std::make_shared<AttachSpec>(std::move(spec));
  thread_.Post([this, shared, done = std::move(done)] {
    const AtWork at_work(this, LongJob("opening an engine's memory"));
    done(AttachNow(std::move(*shared)));
  });
}

void Receiver::Detach() {
  {
    MutexLock lock(&mu_);
    detached_through_ = jobs_;
  }
  thread_.Post([this] {
    const AtWork at_work(this, LongJob("letting an engine's memory go"));
    work_.attachment.reset();
    work_.events.CloseAll();
  });
}

void Receiver::Connect(SessionSpec session, std::function<void(sink::Connected)> done) {
  const uint64_t job = NextJob();
  thread_.Post([this, job, session = std::move(session), done = std::move(done)] {
    done(sink::Connected{ConnectNow(job, session)});
  });
}

void Receiver::Receive(std::function<void(sink::Received)> done, LayerCalls layers) {
  const uint64_t job = NextJob();
  {
    MutexLock lock(&mu_);
    paused_ = false;
    paused_after_.reset();
  }
  thread_.Post([this, job, done = std::move(done), layers = std::move(layers)] {
    const sink::Received received = ReceiveNow(job, layers);
    NoteLent(received.status);
    done(received);
  });
}

void Receiver::EnginePaused(std::optional<EventHandle> after) {
  MutexLock lock(&mu_);
  paused_ = true;
  paused_after_ = std::move(after);
  changed_.SignalAll();
}

void Receiver::Apply(std::function<void(sink::ApplyDone)> done, std::optional<EventHandle> after) {
  const uint64_t job = NextJob();
  thread_.Post([this, job, done = std::move(done), after = std::move(after)] {
    const sink::ApplyDone applied = ApplyNow(job, after);
    NoteLent(applied.status);
    done(applied);
  });
}

void Receiver::Verify(std::function<void(absl::StatusOr<Hash128>)> done) {
  const uint64_t job = NextJob();
  thread_.Post([this, job, done = std::move(done)] {
    const absl::StatusOr<Hash128> digest = VerifyNow(job);
    NoteLent(digest.status());
    done(digest);
  });
}

// ---- on the receiver's thread

Receiver::Watched Receiver::LongJob(const char* what) {
  constexpr uint64_t kOfItsOwn = uint64_t{1} << 63;  // no number of those that can be called off
  return {kOfItsOwn | ++work_.long_jobs, what, kLongestJob, Watched::Counts::kAtOnce};
}

PlanResult Receiver::UseCatalog(AnnouncedCatalog catalog) {
  PlanResult result;
  result.plan_hash = catalog.plan_hash;
  if (work_.plan != nullptr && work_.memory != nullptr && work_.plan->hash() == catalog.plan_hash &&
      work_.plan->catalog().fingerprint() == catalog.fingerprint) {
    result.plan = work_.plan;
    result.changed = false;
    return result;
  }
  // Room for two plans at once may not exist: the old one goes first.
  if (work_.attachment != nullptr) work_.attachment->Unfit();
  work_.memory.reset();
  work_.plan.reset();
  work_.wanted.reset();
  absl::StatusOr<std::shared_ptr<const Plan>> plan = MakePlan(std::move(catalog));
  result.status = plan.status();
  return plan.ok() ? MakeRoom(*std::move(plan)) : result;
}

PlanResult Receiver::MakeRoom(std::shared_ptr<const Plan> plan) {
  PlanResult result;
  result.plan_hash = plan->hash();
  const bool staged = options_.mode == SinkMode::kStaged;
  const int64_t bytes = staged ? plan->image_bytes() : RingLayout(*plan, options_.ring_slots).bytes();
  // A catalog whose tensors are all empty needs none, but Allocate wants some.
  absl::StatusOr<std::unique_ptr<Buffer>> memory = backend_->memory().Allocate(
      std::max<int64_t>(bytes, 1), staged ? "the staging copy (sink_mode: staged)" : "the ring (sink_mode: in_place)");
  result.status = memory.status();
  work_.wanted = memory.ok() ? nullptr : plan;
  if (!memory.ok()) return result;
  if (work_.attachment != nullptr) result.attachment = work_.attachment->Fit(*backend_, plan);
  if (!result.attachment.ok()) work_.attachment.reset();
  work_.memory = *std::move(memory);
  work_.plan = plan;
  result.plan = std::move(plan);
  return result;
}

absl::StatusOr<AttachInfo> Receiver::AttachNow(AttachSpec spec) {
  (void)WSYNC_FAILPOINT("rollout.attach");
  if (work_.plan == nullptr)
    return absl::UnavailableError("the catalog changed while the engine attached: attach again");
  absl::StatusOr<std::unique_ptr<Attachment>> attachment =
      Attachment::Create(*backend_, std::move(spec), options_.mode, options_.ring_slots, work_.plan);
  if (!attachment.ok()) return attachment.status();
  work_.attachment = *std::move(attachment);
  MutexLock lock(&mu_);
  lent_ = absl::OkStatus();
  return AttachInfo{work_.plan->hash(), work_.attachment->bytes_per_version()};
}

absl::Status Receiver::ConnectNow(uint64_t job, const SessionSpec& session) {
  const AtWork at_work(this, {job, "connecting", options_.end_limit});
  if (absl::Status status = CancelledStatus(job); !status.ok()) return status;
  if (absl::Status status = WSYNC_FAILPOINT("rollout.connect"); !status.ok()) return status;
  if (GoOnIn(session)) return absl::OkStatus();
  if (absl::Status status = AdoptTransport(job, nullptr); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Transport>> created = backend_->NewTransport(session);
  if (!created.ok()) return created.status();
  const std::shared_ptr<Transport> transport = *std::move(created);
  if (absl::Status status = AdoptTransport(job, transport); !status.ok()) return status;
  absl::Status status = transport->Connect(MonotonicNow() + options_.connect_timeout);
  MutexLock lock(&mu_);
  if (status.ok() && job > cancelled_through_) open_token_ = session.token;
  return status;
}

absl::Status Receiver::AwaitPause(const std::optional<EventHandle>& after,
                                  const std::function<absl::Status()>& called_off) {
  if (!after.has_value()) return absl::OkStatus();
  auto event = work_.events.Open(backend_->memory(), *after);
  if (!event.ok()) return event.status();
  return AwaitEngine(**event, options_.pause_timeout, called_off);
}

absl::Status Receiver::AwaitEnginePaused(uint64_t job) {
  std::optional<EventHandle> after;
  {
    MutexLock lock(&mu_);
    const absl::Time deadline = MonotonicNow() + kEnginePauseLimit;
    while (!paused_ && job > cancelled_through_ && changed_.WaitUntil(&mu_, deadline)) {
    }
    if (job <= cancelled_through_) return cancelled_why_;
    if (!paused_) {
      return absl::DeadlineExceededError(
          absl::StrCat("the engine did not pause within ", absl::FormatDuration(kEnginePauseLimit)));
    }
    after = paused_after_;
  }
  return AwaitPause(after, [this, job] { return CancelledStatus(job); });
}

sink::ApplyDone Receiver::ApplyNow(uint64_t job, const std::optional<EventHandle>& after) {
  const double bytes = work_.memory == nullptr ? 0 : static_cast<double>(work_.memory->bytes());
  const absl::Duration limit = options_.pause_timeout + options_.end_limit + absl::Seconds(bytes / kSlowestCopy);
  const AtWork at_work(this, {job, "applying", limit, Watched::Counts::kAtOnce});
  absl::Status usable = WSYNC_FAILPOINT("rollout.apply");
  usable.Update(CheckUsable("apply"));
  if (!usable.ok()) return sink::ApplyDone{usable};
  const absl::Status paused = AwaitPause(after, [this, job] { return DetachedStatus(job); });
  if (!paused.ok()) return sink::ApplyDone{.status = paused, .wrote = false};
  WSYNC_CORRUPTION_POINT("rollout.image", work_.memory->data(), work_.plan->image_bytes());
  return ApplyImage(*work_.attachment->loader(), work_.memory->data());
}

sink::Received Receiver::ReceiveNow(uint64_t job, const LayerCalls& layers) {
  const AtWork at_work(this, {job, "receiving", options_.end_limit});
  absl::Status status = CancelledStatus(job);
  if (status.ok()) status = CheckUsable("receive");
  const std::shared_ptr<Transport> session = transport();
  if (status.ok() && session == nullptr) status = absl::InternalError("receive without a session");
  if (!status.ok()) return sink::Received{.status = status};
  ReceiveContext context{*work_.plan, *session, *work_.attachment->loader(), options_.stall_timeout, &bucket_};
  context.paused = [this, job] { return AwaitEnginePaused(job); };
  std::optional<LayerCount> count;
  if (work_.attachment->layers() != nullptr && layers.ready && options_.mode == SinkMode::kInPlace) {
    count.emplace(work_.attachment->layers());
    context.applied = [&count, &layers](int64_t bucket) {
      for (LayerReady& ready : count->Applied(bucket)) layers.ready(std::move(ready));
    };
  }
  std::byte* const memory = work_.memory->data();
  sink::Received received;
  if (options_.mode == SinkMode::kStaged) {
    received = ReceiveImage(context, memory);
  } else if (work_.attachment->window() != nullptr) {
    received = ReceiveThroughWindow(job, context, layers);
  } else {
    received = ReceiveInPlace(context, memory, options_.ring_slots, work_.attachment->direct());
  }
  if (!received.status.ok()) {
    MutexLock lock(&mu_);
    open_token_.clear();
  }
  return received;
}

sink::Received Receiver::ReceiveThroughWindow(uint64_t job, const ReceiveContext& context, const LayerCalls& layers) {
  LayerWindow& window = *work_.attachment->window();
  loans_.Begin({work_.attachment->engine(), work_.attachment->layer_window(), options_.layer_timeout});
  // Asked for again: a Cancel since then has told the loans, one before it only this.
  if (absl::Status status = CancelledStatus(job); !status.ok()) return sink::Received{.status = status};
  window.Begin({&loans_, layers.wanted, layers.ready});
  sink::Received received = ReceiveWindowed(
      context, work_.memory->data(), options_.ring_slots,
      [&](int64_t bucket, const std::byte* wire) { return window.Place(bucket, wire, context.loader); },
      [&] { return window.AwaitAllTaken(); });
  received.wrote |= window.End();
  return received;
}

absl::StatusOr<Hash128> Receiver::VerifyNow(uint64_t job) {
  const AtWork at_work(this, {job, "verifying", 4 * options_.end_limit, Watched::Counts::kOvertaken});
  if (absl::Status status = CheckUsable("verify"); !status.ok()) return status;
  return work_.attachment->Verify(*backend_, work_.plan, work_.memory->data(),
                                  [this, job] { return !IsNewest(job) || !CancelledStatus(job).ok(); });
}

absl::Status Receiver::CheckUsable(const char* what) const {
  if (work_.plan == nullptr || work_.memory == nullptr || work_.attachment == nullptr ||
      work_.attachment->loader() == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot ", what, ": the engine or the catalog is gone"));
  }
  return absl::OkStatus();
}

void Receiver::NoteLent(const absl::Status& outcome) {
  if (outcome.ok() || work_.attachment == nullptr) return;
  const absl::Status lent = work_.attachment->CheckLent();
  MutexLock lock(&mu_);
  lent_ = lent;
}

// ---- beside the running job

void Receiver::Cancel(const absl::Status& why) {
  std::shared_ptr<Transport> session;
  {
    MutexLock lock(&mu_);
    cancelled_through_ = jobs_;
    cancelled_why_ = why;
    open_token_.clear();
    session = transport_;
    changed_.SignalAll();
  }
  loans_.Cancel(why);
  if (session != nullptr) session->Cancel(why);
}

absl::Status Receiver::Look(absl::Time now) {
  MutexLock lock(&mu_);
  using Counts = Watched::Counts;
  const bool counts = watched_.job != 0 && (watched_.counts == Counts::kAtOnce || watched_.job <= cancelled_through_ ||
                                            (watched_.counts == Counts::kOvertaken && watched_.job < jobs_));
  const absl::Duration late = late_.Look(counts ? watched_.job : 0, now);
  if (!counts || late < watched_.limit) return absl::OkStatus();
  const char* const since = watched_.counts == Counts::kAtOnce ? "it began" : "that was called off";
  return absl::InternalError(absl::StrCat("the receive thread is still ", watched_.what, " ",
                                          absl::FormatDuration(watched_.limit), " after ", since));
}

absl::Status Receiver::lent() const {
  MutexLock lock(&mu_);
  return lent_;
}

int64_t Receiver::received_bytes() const {
  MutexLock lock(&mu_);
  return transport_ == nullptr ? 0 : transport_->moved_bytes() - received_before_;
}

uint64_t Receiver::NextJob() {
  MutexLock lock(&mu_);
  return ++jobs_;
}

bool Receiver::IsNewest(uint64_t job) const {
  MutexLock lock(&mu_);
  return job == jobs_;
}

absl::Status Receiver::CancelledStatus(uint64_t job) const {
  MutexLock lock(&mu_);
  return job <= cancelled_through_ ? cancelled_why_ : absl::OkStatus();
}

absl::Status Receiver::DetachedStatus(uint64_t job) const {
  MutexLock lock(&mu_);
  return job <= detached_through_ ? absl::UnavailableError("the engine is gone") : absl::OkStatus();
}

absl::Status Receiver::AdoptTransport(uint64_t job, std::shared_ptr<Transport> transport) {
  std::shared_ptr<Transport> old;  // destroyed without the lock: that waits for its pending work
  MutexLock lock(&mu_);
  if (job <= cancelled_through_) return cancelled_why_;
  old = std::exchange(transport_, std::move(transport));
  open_token_.clear();
  received_before_ = 0;
  return absl::OkStatus();
}

bool Receiver::GoOnIn(const SessionSpec& session) {
  MutexLock lock(&mu_);
  if (open_token_.empty() || open_token_ != session.token) return false;
  received_before_ = transport_->moved_bytes();
  return true;
}

std::shared_ptr<Transport> Receiver::transport() const {
  MutexLock lock(&mu_);
  return transport_;
}

}  // namespace wsync
