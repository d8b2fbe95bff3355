#include "server/backend/cuda/stream_event.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/load_cuda.h"

namespace wsync::cuda {

absl::Status CheckEventHandle(const Device& device, const EventHandle& handle) {
  if (handle.handle.size() != sizeof(cudaIpcEventHandle_t)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open a CUDA event handle of ", handle.handle.size(),
                                                   " bytes; cudaIpcGetEventHandle gives ",
                                                   sizeof(cudaIpcEventHandle_t)));
  }
  if (NormalUuid(handle.device_uuid) != device.uuid()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open a CUDA event handle: it names an event of '",
                                                   handle.device_uuid, "', this agent runs on ", device.name(),
                                                   "; record the event on a stream of that GPU"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CudaStreamEvent>> CudaStreamEvent::Open(const std::shared_ptr<const Device>& device,
                                                                       const EventHandle& handle) {
  if (absl::Status status = CheckEventHandle(*device, handle); !status.ok()) return status;
  // Above all others: a mark must not queue behind work that waits for it.
  absl::StatusOr<std::unique_ptr<Stream>> stream = Stream::Create(device, Priority::kWire);
  if (!stream.ok()) return stream.status();
  auto guard = PinnedBuffer::Create(device, sizeof(Mismatches), "the guard of an event");
  if (!guard.ok()) return guard.status();
  cudaIpcEventHandle_t ipc = {};
  std::memcpy(&ipc, handle.handle.data(), sizeof(ipc));
  cudaEvent_t opened = nullptr;
  const absl::Status status =
      device->Check(cudaIpcOpenEventHandle(&opened, ipc), "cudaIpcOpenEventHandle", "an event of another process");
  if (!status.ok()) {
    if (!absl::IsInternal(status) || !device->health().ok()) return status;
    return absl::NotFoundError(absl::StrCat(
        std::string(status.message()),
        "; does the process that exported the event still run, and do both share a host and an IPC namespace "
        "(containers: ipc=host)?"));
  }
  EventPtr event(new Event(opened), [device](const Event* owned) {
    if (device->MakeCurrent().ok()) cudaEventDestroy(owned->get());
    delete owned;
  });
  auto state = std::make_shared<State>(*std::move(guard));
  return std::unique_ptr<CudaStreamEvent>(
      new CudaStreamEvent(device, std::move(event), *std::move(stream), std::move(state)));
}

CompletionPtr CudaStreamEvent::Recorded() {
  const auto verdict = [state = state_](bool come) -> std::optional<absl::Status> {
    MutexLock lock(&state->mu);
    if (!state->why.ok()) return state->why;
    return come ? std::optional<absl::Status>(absl::OkStatus()) : std::nullopt;
  };
  return CudaCompletion::OfEvent(event_, device_.get(), verdict,
                                 std::shared_ptr<const std::byte>(state_, state_->guard->data()));
}

void CudaStreamEvent::GiveUp(const absl::Status& why) {
  {
    MutexLock lock(&state_->mu);
    state_->why.Update(why);
  }
  // First the guard, then the way is free for what looks at it.
  Mismatches closed;
  closed.count = 1;
  std::memcpy(state_->guard->data(), &closed, sizeof(closed));
  if (absl::Status status = Mark({}); !status.ok()) device_->Break(status);
}

absl::Status CudaStreamEvent::Mark(absl::Span<const CompletionPtr> after) {
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  absl::Status status;
  for (const CompletionPtr& work : after) status.Update(OrderAfter(*stream_, work).status());
  // Whatever failed: a client that waits for it is not left waiting.
  status.Update(
      device_->Check(cudaEventRecord(event_->get(), stream_->get()), "cudaEventRecord", "an event of another process"));
  return status;
}

}  // namespace wsync::cuda
