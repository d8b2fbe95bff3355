// A client process's event, opened by its IPC handle. Any GPU work of this agent can be ordered after it, and it can be
// marked from here.
//
// Waiting and marking are the GPU's. A stream that waits for an event of a process that was killed would wait for ever,
// and with it every cudaFree of this one: whoever orders work after it watches its Recorded() and gives it up in time.
#ifndef WSYNC_SERVER_BACKEND_CUDA_STREAM_EVENT_H_
#define WSYNC_SERVER_BACKEND_CUDA_STREAM_EVENT_H_

#include <memory>

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

  CompletionPtr Recorded() override;
  void GiveUp(const absl::Status& why) override;
  absl::Status Mark(absl::Span<const CompletionPtr> after) override;

 private:
  struct State {  // shared with completions, which may outlive the event
    explicit State(std::unique_ptr<PinnedBuffer> word) : guard(std::move(word)) {}
    const std::unique_ptr<PinnedBuffer> guard;  // CudaCompletion::guard()
    mutable Mutex mu;
    absl::Status why ABSL_GUARDED_BY(mu);  // given up
  };

  CudaStreamEvent(std::shared_ptr<const Device> device, EventPtr event, std::unique_ptr<Stream> stream,
                  std::shared_ptr<State> state)
      : device_(std::move(device)), event_(std::move(event)), stream_(std::move(stream)), state_(std::move(state)) {}

  const std::shared_ptr<const Device> device_;
  const EventPtr event_;
  const std::unique_ptr<Stream> stream_;  // for marks alone: a mark waits for what it marks, and for nothing else
  const std::shared_ptr<State> state_;
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_STREAM_EVENT_H_
