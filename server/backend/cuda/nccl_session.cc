#include "server/backend/cuda/nccl_session.h"

#include <cuda_runtime_api.h>
#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/backend/backoff.h"
#include "server/core/clock.h"

namespace wsync::cuda {
namespace {

// Connections stand, so NCCL only has to launch: well under a millisecond. But behind a thousand launches that wait for
// a slow network it waits for room in the GPU's queue. The coordinator ends a session that does not move long before.
constexpr absl::Duration kEnqueueLimit = absl::Seconds(60);
// How often the watcher looks for an asynchronous error. Nobody waits for it: completions look at their own events.
constexpr absl::Duration kWatchPeriod = absl::Milliseconds(5);
// NCCL's most. Some 24 blocks of its own choice are enough for the link while nothing else reads the GPU's memory;
// beside an encode each of them waits longer for what it loads, and more of them have more loads under way. Two H100,
// in place: Qwen3-30B-A3B from 92.4 to 89.4 ms, Qwen2.5-7B from 26.9 to 25.9 ms, for 0.7 GB of NCCL's buffers on each
// GPU.
constexpr int kWideCtas = 64;

}  // namespace

absl::StatusOr<std::shared_ptr<NcclSession>> NcclSession::Create(std::shared_ptr<const Device> device,
                                                                 const NcclLibrary* nccl,
                                                                 std::shared_ptr<EventPool> events,
                                                                 const NcclSessionSpec& spec) {
  absl::StatusOr<std::unique_ptr<Stream>> stream = Stream::Create(device, Priority::kWire);
  if (!stream.ok()) return stream.status();
  return std::shared_ptr<NcclSession>(
      new NcclSession(std::move(device), nccl, std::move(events), *std::move(stream), spec));
}

std::string NcclSession::Who() const { return absl::StrCat("rank ", spec_.rank, " of ", spec_.world); }

// ---- opening

absl::Status NcclSession::BeginConnect() {
  MutexLock lock(&mu_);
  if (!why_.ok()) return why_;
  if (connecting_) return absl::FailedPreconditionError("data plane: a session is connected once");
  connecting_ = true;
  return absl::OkStatus();
}

absl::Status NcclSession::Connect(absl::Time deadline) {
  if (absl::Status status = BeginConnect(); !status.ok()) return status;
  watcher_ = std::thread([this] { Watch(); });
  absl::Status status = device_->MakeCurrent();
  if (status.ok()) status = Init(deadline);
  if (status.ok()) status = WarmUp(deadline);
  if (absl::IsDeadlineExceeded(status) && failure().ok()) {
    status = absl::DeadlineExceededError(absl::StrCat(
        std::string(status.message()),
        "; does every rank run and connect now, and can their hosts reach each other on the interface that NCCL chose "
        "(NCCL_SOCKET_IFNAME, firewall)? NCCL_DEBUG=INFO says how far it came"));
  }
  Fail(status);
  MutexLock lock(&mu_);
  connected_ = why_.ok();
  return why_;
}

absl::Status NcclSession::Init(absl::Time deadline) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (spec_.max_ctas > 0) config.maxCTAs = spec_.max_ctas;
  if (spec_.wide) config.minCTAs = config.maxCTAs = spec_.max_ctas > 0 ? spec_.max_ctas : kWideCtas;
  {
    MutexLock call(&call_mu_);
    // Seen here, or the communicator is there for who ends it.
    if (absl::Status status = failure(); !status.ok()) return status;
    const ncclResult_t result = nccl_->CommInitRankConfig(&comm_, spec_.world, spec_.id, spec_.rank, &config);
    const absl::Status status = nccl_->Check(result, absl::StrCat("ncclCommInitRankConfig of ", Who()));
    if (!status.ok()) return status;
  }
  return AwaitReady("ncclCommInitRankConfig", deadline);
}

absl::Status NcclSession::WarmUp(absl::Time deadline) {
  absl::Status status = Enqueue(spec_.warm_up, spec_.warm_up_bytes);
  if (status.ok()) status = AwaitReady("the first ncclBroadcast", deadline);
  if (!status.ok()) return status;
  const auto done = CudaCompletion::Record(*events_, *stream_, nullptr);
  if (!done.ok()) return done.status();
  Backoff backoff;
  while (true) {
    if (const std::optional<absl::Status> result = (*done)->Poll()) return *result;
    if (absl::Status why = failure(); !why.ok()) return why;
    if (!backoff.Pause(deadline)) {
      return absl::DeadlineExceededError(absl::StrCat("data plane: the first ncclBroadcast of ", Who(), " on ",
                                                      device_->name(), " did not end before the deadline"));
    }
  }
}

absl::StatusOr<bool> NcclSession::IsReady(const char* what) {
  MutexLock call(&call_mu_);
  if (comm_ == nullptr) return absl::CancelledError(absl::StrCat(what, ": the communicator was ended"));
  ncclResult_t state = ncclSuccess;
  absl::Status status = nccl_->Check(nccl_->CommGetAsyncError(comm_, &state), "ncclCommGetAsyncError");
  if (status.ok()) status = nccl_->Check(state, absl::StrCat(what, " of ", Who(), " on ", device_->name()));
  if (!status.ok()) return status;
  return state != ncclInProgress;
}

absl::Status NcclSession::AwaitReady(const char* what, absl::Time deadline) {
  Backoff backoff;
  while (true) {
    if (absl::Status why = failure(); !why.ok()) return why;
    const absl::StatusOr<bool> ready = IsReady(what);
    if (!ready.ok()) return ready.status();
    if (*ready) return absl::OkStatus();
    if (!backoff.Pause(deadline)) {
      return absl::DeadlineExceededError(absl::StrCat("data plane: ", what, " of ", Who(), " on ", device_->name(),
                                                      " did not end before the deadline"));
    }
  }
}

// ---- broadcasting

absl::Status NcclSession::Enqueue(std::byte* data, int64_t bytes) {
  MutexLock call(&call_mu_);
  if (comm_ == nullptr) return absl::CancelledError("ncclBroadcast: the communicator was ended");
  const ncclResult_t result =
      nccl_->Broadcast(data, data, static_cast<size_t>(bytes), ncclUint8, /*root=*/0, comm_, stream_->get());
  return nccl_->Check(result, absl::StrCat("ncclBroadcast of ", bytes, " bytes, ", Who()));
}

absl::StatusOr<CudaCompletion::Ptr> NcclSession::Start(std::byte* data, int64_t bytes, const CompletionPtr& after) {
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  absl::StatusOr<CudaCompletion::Ptr> before = OrderAfter(*stream_, after);
  if (!before.ok()) return before.status();
  if (bytes > 0) {
    absl::Status status = Enqueue(data, bytes);
    // Only then is it in the stream, and an event behind it means something.
    if (status.ok()) status = AwaitReady("ncclBroadcast", MonotonicNow() + kEnqueueLimit);
    if (!status.ok()) return status;
  }
  int64_t end_bytes = 0;
  {
    MutexLock lock(&mu_);
    end_bytes = started_bytes_ += bytes;
  }
  absl::StatusOr<CudaCompletion::Ptr> completion =
      CudaCompletion::Record(*events_, *stream_, *std::move(before), Verdict(end_bytes), Doom());
  if (!completion.ok()) return completion;
  MutexLock lock(&mu_);
  pending_.push_back(*completion);
  changed_.SignalAll();
  return completion;
}

CompletionPtr NcclSession::Broadcast(std::byte* data, int64_t bytes, const CompletionPtr& after) {
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return CudaCompletion::Failed(why_);
    if (!connected_) return CudaCompletion::Failed(absl::FailedPreconditionError("broadcast: connect first"));
  }
  absl::StatusOr<CudaCompletion::Ptr> started = Start(data, bytes, after);
  if (started.ok()) return *std::move(started);
  // Other ranks wait for this broadcast, and nothing can be sent in its place.
  Fail(started.status());
  // It may be under way all the same: it has failed when the communicator has ended.
  return CudaCompletion::Doomed(Verdict(/*end_bytes=*/0), Doom());
}

CudaCompletion::Verdict NcclSession::Verdict(int64_t end_bytes) {
  return [self = shared_from_this(), end_bytes](bool come) { return self->VerdictOf(come, end_bytes); };
}

CudaCompletion::Doom NcclSession::Doom() {
  return [self = shared_from_this()] { return self->failure(); };
}

std::optional<absl::Status> NcclSession::VerdictOf(bool come, int64_t end_bytes) {
  MutexLock lock(&mu_);
  if (why_.ok() && !come) return std::nullopt;
  if (why_.ok()) {
    moved_bytes_ = std::max(moved_bytes_, end_bytes);  // what was started before it came before it, in one stream
    return absl::OkStatus();
  }
  // Until the communicator has ended, its kernels may still touch the memory.
  return settled_ ? std::optional<absl::Status>(why_) : std::nullopt;
}

absl::Status NcclSession::Reap() {
  while (true) {
    CudaCompletion::Ptr first;
    {
      MutexLock lock(&mu_);
      if (pending_.empty()) return absl::OkStatus();
      first = pending_.front();
    }
    const std::optional<absl::Status> result = first->Poll();
    if (!result) return absl::OkStatus();
    {
      MutexLock lock(&mu_);
      if (!pending_.empty() && pending_.front() == first) pending_.pop_front();
    }
    if (!result->ok()) return *result;
  }
}

int64_t NcclSession::moved_bytes() const {
  MutexLock lock(&mu_);
  return moved_bytes_;
}

// ---- ending

void NcclSession::Fail(const absl::Status& why) {
  MutexLock lock(&mu_);
  if (why.ok() || !why_.ok()) return;
  why_ = why;
  changed_.SignalAll();
}

absl::Status NcclSession::failure() const {
  MutexLock lock(&mu_);
  return why_;
}

void NcclSession::Watch() {
  pthread_setname_np(pthread_self(), "wsync-nccl");
  while (true) {
    {
      MutexLock lock(&mu_);
      while (why_.ok() && !closing_ && pending_.empty()) changed_.Wait(&mu_);
      if (why_.ok() && !closing_) changed_.WaitUntil(&mu_, MonotonicNow() + kWatchPeriod);
      if (!why_.ok() || closing_) break;
    }
    Fail(Reap());
    Fail(IsReady("a broadcast").status());
  }
  End();
}

void NcclSession::End() {
  std::thread ender([self = shared_from_this()] { self->EndCommunicator(); });
  const absl::Time limit = MonotonicNow() + spec_.end_limit;
  bool ended = false;
  {
    MutexLock lock(&mu_);
    while (!ended_ && changed_.WaitUntil(&mu_, limit)) {
    }
    ended = ended_;
  }
  if (ended) {
    ender.join();
  } else {
    ender.detach();
    device_->Break(absl::InternalError(absl::StrCat("the NCCL communicator of ", Who(), " on ", device_->name(),
                                                    " did not end within ", absl::FormatDuration(spec_.end_limit),
                                                    " and is left behind: restart the agent")));
  }
  MutexLock lock(&mu_);
  settled_ = true;
}

void NcclSession::EndCommunicator() {
  pthread_setname_np(pthread_self(), "wsync-nccl-end");
  ncclComm_t comm = nullptr;
  {
    MutexLock call(&call_mu_);  // nobody is inside NCCL now, and nobody finds a communicator from here on
    comm = std::exchange(comm_, nullptr);
  }
  // What it returns tells of the session that was broken, not of its end; that is seen below.
  if (comm != nullptr && device_->MakeCurrent().ok()) (void)nccl_->CommAbort(comm);
  // The kernels have been told to quit; what is behind them in the stream goes as well.
  Backoff backoff;
  while (device_->MakeCurrent().ok() && cudaStreamQuery(stream_->get()) == cudaErrorNotReady) {
    cudaGetLastError();
    (void)backoff.Pause(absl::InfiniteFuture());
  }
  MutexLock lock(&mu_);
  ended_ = true;
  changed_.SignalAll();
}

void NcclSession::Close() {
  Fail(Reap());
  {
    MutexLock lock(&mu_);
    closing_ = true;
    if (!pending_.empty() && why_.ok()) why_ = absl::CancelledError("data plane: this rank closed the session");
    changed_.SignalAll();
  }
  if (watcher_.joinable()) watcher_.join();
  std::deque<CudaCompletion::Ptr> left;  // with results now, by which they let go of the session
  {
    MutexLock lock(&mu_);
    left.swap(pending_);
  }
  for (const CudaCompletion::Ptr& completion : left) (void)completion->Poll();
}

}  // namespace wsync::cuda
