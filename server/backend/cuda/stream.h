// Owners of CUDA objects: streams, events, page-locked host memory.
//
// Each belongs to one Device and makes that the thread's current one where it makes or destroys something of CUDA's. A
// Stream takes work from any thread, in the order in which it comes; whoever needs an order between two threads' work
// keeps it himself. A PinnedBuffer is memory: used by one at a time. An EventPool and its events: any thread.
#ifndef WSYNC_SERVER_BACKEND_CUDA_STREAM_H_
#define WSYNC_SERVER_BACKEND_CUDA_STREAM_H_

#include <driver_types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/cuda/device.h"
#include "server/core/sync.h"

namespace wsync::cuda {

// Whose blocks get a free multiprocessor first. A broadcast's few blocks must not queue behind thousands that encode:
// the link would idle until all buckets are encoded.
enum class Priority : uint8_t { kWire, kKernels };

// A stream of its own order: it does not wait for the default stream. Both priorities are above a plain stream's: our
// kernels are short, and somebody waits for each.
class Stream {
 public:
  static absl::StatusOr<std::unique_ptr<Stream>> Create(std::shared_ptr<const Device> device,
                                                        Priority priority = Priority::kKernels);
  ~Stream();  // does not wait: what is in it runs on
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  const Device& device() const { return *device_; }
  // Blocks until all that is in it now is done, other threads' work too. Only for set-up work, which is short: a
  // version waits for events, under a deadline.
  absl::Status Synchronize(std::string_view what) const;

 private:
  Stream(std::shared_ptr<const Device> device, cudaStream_t stream) : device_(std::move(device)), stream_(stream) {}
  const std::shared_ptr<const Device> device_;
  const cudaStream_t stream_;
};

// Page-locked host memory, zeroed: the GPU copies into it without the host's help.
class PinnedBuffer {
 public:
  static absl::StatusOr<std::unique_ptr<PinnedBuffer>> Create(std::shared_ptr<const Device> device, int64_t bytes,
                                                              std::string_view purpose);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  std::byte* data() const { return data_; }

 private:
  PinnedBuffer(std::shared_ptr<const Device> device, std::byte* data) : device_(std::move(device)), data_(data) {}
  const std::shared_ptr<const Device> device_;
  std::byte* const data_;
};

// A point in a stream. Goes back to its pool with the last reference.
class Event {
 public:
  explicit Event(cudaEvent_t event) : event_(event) {}
  cudaEvent_t get() const { return event_; }

 private:
  const cudaEvent_t event_;
};
using EventPtr = std::shared_ptr<const Event>;

// Events that are used again and again: a version makes none that an earlier one made.
class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  explicit EventPool(std::shared_ptr<const Device> device) : device_(std::move(device)) {}
  ~EventPool();
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  // An event that comes when everything that is in `stream` now is done.
  absl::StatusOr<EventPtr> Record(const Stream& stream);
  const Device& device() const { return *device_; }

 private:
  absl::StatusOr<cudaEvent_t> Take();
  void Return(cudaEvent_t event);

  const std::shared_ptr<const Device> device_;
  Mutex mu_;
  std::vector<cudaEvent_t> free_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_STREAM_H_
