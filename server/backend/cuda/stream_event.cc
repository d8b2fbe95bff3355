#include "server/backend/cuda/stream_event.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

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
  if (absl::Status status = device->MakeCurrent(); !status.ok()) return status;
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
    if (device->MakeCurrent().ok()) {
      device->Check(cudaEventDestroy(owned->get()), "cudaEventDestroy", "an event").IgnoreError();
    }
    delete owned;
  });
  return std::unique_ptr<CudaStreamEvent>(new CudaStreamEvent(device, std::move(event)));
}

}  // namespace wsync::cuda
