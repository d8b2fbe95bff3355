#include "server/backend/cuda/completion.h"

#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/backend/backoff.h"

namespace wsync::cuda {

CudaCompletion::Ptr CudaCompletion::Failed(absl::Status status) {
  auto completion = std::make_shared<CudaCompletion>();
  MutexLock lock(&completion->mu_);
  completion->result_ = std::move(status);
  return completion;
}

CudaCompletion::Ptr CudaCompletion::Doomed(Verdict verdict, Doom doom) {
  auto completion = std::make_shared<CudaCompletion>();
  completion->verdict_ = std::move(verdict);
  completion->doom_ = std::move(doom);
  return completion;
}

CudaCompletion::Ptr CudaCompletion::OfEvent(EventPtr event, const Device* device) {
  auto completion = std::make_shared<CudaCompletion>();
  completion->event_ = std::move(event);
  completion->device_ = device;
  return completion;
}

absl::StatusOr<CudaCompletion::Ptr> CudaCompletion::Record(EventPool& events, const Stream& stream, Ptr after,
                                                           Verdict verdict, Doom doom) {
  absl::StatusOr<EventPtr> event = events.Record(stream);
  if (!event.ok()) return event.status();
  auto completion = std::make_shared<CudaCompletion>();
  completion->event_ = *std::move(event);
  completion->device_ = &events.device();
  completion->verdict_ = std::move(verdict);
  completion->doom_ = std::move(doom);
  MutexLock lock(&completion->mu_);
  completion->after_ = std::move(after);
  return completion;
}

CudaCompletion::~CudaCompletion() {
  // A version's completions form one long chain; destroying it link by link would recurse as deep.
  Ptr next;
  {
    MutexLock lock(&mu_);
    next = std::move(after_);
  }
  while (next != nullptr && next.use_count() == 1) {
    Ptr further;
    {
      MutexLock lock(&next->mu_);
      further = std::move(next->after_);
    }
    next = std::move(further);
  }
}

std::optional<absl::Status> CudaCompletion::result() const {
  MutexLock lock(&mu_);
  return result_;
}

CudaCompletion::Ptr CudaCompletion::after() const {
  MutexLock lock(&mu_);
  return after_;
}

absl::Status CudaCompletion::Wait(absl::Time deadline) {
  Backoff backoff;
  while (true) {
    if (const std::optional<absl::Status> done = Poll()) return *done;
    if (!backoff.Pause(deadline)) return absl::DeadlineExceededError("the work was not finished within the deadline");
  }
}

std::optional<absl::Status> CudaCompletion::OwnResult() {
  if (event_ == nullptr) return verdict_(/*come=*/false);
  // On a thread that has no device yet, the query would make a context on GPU 0.
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  const cudaError_t error = cudaEventQuery(event_->get());
  if (error == cudaErrorNotReady) cudaGetLastError();  // else the next launch would take it for its own
  if (error != cudaSuccess && error != cudaErrorNotReady) {
    return device_->Check(error, "cudaEventQuery", "work in a stream");
  }
  const bool come = error == cudaSuccess;
  if (verdict_ != nullptr) return verdict_(come);
  return come ? std::optional<absl::Status>(absl::OkStatus()) : std::nullopt;
}

std::optional<absl::Status> CudaCompletion::Resolve() {
  if (std::optional<absl::Status> known = result()) return known;
  std::optional<absl::Status> own = OwnResult();
  if (!own) return std::nullopt;
  const Ptr before = after();
  // Without a result it was resolved, and let go of `after`, by another thread just now.
  if (before != nullptr) {
    if (const std::optional<absl::Status> earlier = before->result(); earlier && !earlier->ok()) own = earlier;
  }
  Ptr dropped;  // destroyed without the lock
  MutexLock lock(&mu_);
  if (!result_) result_ = std::move(own);
  dropped = std::move(after_);
  return result_;
}

std::optional<absl::Status> CudaCompletion::Poll() {
  if (std::optional<absl::Status> known = result()) return known;
  const std::optional<absl::Status> own = OwnResult();
  if (!own) return std::nullopt;
  // What it came after is done on the device, so this walk happens once, not at every poll. Of work that failed by
  // itself it may never be done.
  std::vector<Ptr> chain;
  for (Ptr before = own->ok() ? after() : nullptr; before != nullptr && !before->result(); before = before->after()) {
    chain.push_back(before);
  }
  for (auto link = chain.rbegin(); link != chain.rend(); ++link) {
    if (!(*link)->Resolve()) return std::nullopt;
  }
  return Resolve();
}

absl::Status CudaCompletion::KnownError() {
  if (const std::optional<absl::Status> known = Poll()) return *known;
  return doom_ != nullptr ? doom_() : absl::OkStatus();
}

absl::StatusOr<CudaCompletion::Ptr> OrderAfter(const Stream& stream, const CompletionPtr& after) {
  if (after == nullptr) return nullptr;
  CudaCompletion::Ptr before = std::dynamic_pointer_cast<CudaCompletion>(after);
  if (before == nullptr) {
    return absl::InvalidArgumentError("cuda backend: cannot order work after a completion of another backend");
  }
  if (absl::Status error = before->KnownError(); !error.ok()) return error;
  // It may have ended since.
  if (const auto ended = before->result(); ended.has_value()) {
    if (!ended->ok()) return *ended;
    return nullptr;
  }
  const absl::Status status = stream.device().Check(cudaStreamWaitEvent(stream.get(), before->event_->get(), 0),
                                                    "cudaStreamWaitEvent", "work that comes after other work");
  if (!status.ok()) return status;
  return before;
}

}  // namespace wsync::cuda
