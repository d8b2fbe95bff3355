// A client process's event, opened by its IPC handle.
#ifndef WSYNC_SERVER_BACKEND_CUDA_STREAM_EVENT_H_
#define WSYNC_SERVER_BACKEND_CUDA_STREAM_EVENT_H_

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "server/backend/cuda/completion.h"
#include "server/backend/cuda/stream.h"
#include "server/backend/stream_event.h"

namespace wsync::cuda {

// INVALID_ARGUMENT: a handle of another size or of another GPU. Touches no device.
absl::Status CheckEventHandle(const Device& device, const EventHandle& handle);

class CudaStreamEvent final : public StreamEvent {
 public:
  // As CheckEventHandle; NOT_FOUND: no live process exports it.
  static absl::StatusOr<std::unique_ptr<CudaStreamEvent>> Open(const std::shared_ptr<const Device>& device,
                                                               const EventHandle& handle);

  CompletionPtr Recorded() override { return CudaCompletion::OfEvent(event_, device_.get()); }

 private:
  CudaStreamEvent(std::shared_ptr<const Device> device, EventPtr event)
      : device_(std::move(device)), event_(std::move(event)) {}

  const std::shared_ptr<const Device> device_;
  const EventPtr event_;
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_STREAM_EVENT_H_
