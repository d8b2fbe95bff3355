#include "server/backend/cuda/stream.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace wsync::cuda {

// ---- Stream

absl::StatusOr<std::unique_ptr<Stream>> Stream::Create(std::shared_ptr<const Device> device, Priority priority) {
  if (absl::Status status = device->MakeCurrent(); !status.ok()) return status;
  int least = 0, greatest = 0;
  absl::Status status = device->Check(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                      "cudaDeviceGetStreamPriorityRange", "a stream");
  if (!status.ok()) return status;
  cudaStream_t stream = nullptr;
  const int level =
      priority == Priority::kWire ? greatest : std::min(greatest + 1, least);  // numbers fall as they rise
  status = device->Check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, level),
                         "cudaStreamCreateWithPriority", "a stream");
  if (!status.ok()) return status;
  return std::unique_ptr<Stream>(new Stream(std::move(device), stream));
}

Stream::~Stream() {
  if (!device_->MakeCurrent().ok()) return;
  device_->Check(cudaStreamDestroy(stream_), "cudaStreamDestroy", "a stream").IgnoreError();
}

absl::Status Stream::Synchronize(std::string_view what) const {
  return device_->Check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize", what);
}

// ---- PinnedBuffer

absl::StatusOr<std::unique_ptr<PinnedBuffer>> PinnedBuffer::Create(std::shared_ptr<const Device> device, int64_t bytes,
                                                                   std::string_view purpose) {
  if (absl::Status status = device->MakeCurrent(); !status.ok()) return status;
  void* data = nullptr;
  const absl::Status status =
      device->Check(cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocDefault), "cudaHostAlloc", purpose);
  if (!status.ok()) return status;
  std::memset(data, 0, static_cast<size_t>(bytes));
  return std::unique_ptr<PinnedBuffer>(new PinnedBuffer(std::move(device), static_cast<std::byte*>(data)));
}

PinnedBuffer::~PinnedBuffer() {
  if (device_->MakeCurrent().ok()) device_->Check(cudaFreeHost(data_), "cudaFreeHost", "a buffer").IgnoreError();
}

// ---- EventPool

EventPool::~EventPool() {
  if (!device_->MakeCurrent().ok()) return;
  MutexLock lock(&mu_);
  for (const cudaEvent_t event : free_) {
    device_->Check(cudaEventDestroy(event), "cudaEventDestroy", "an event").IgnoreError();
  }
}

absl::StatusOr<cudaEvent_t> EventPool::Take() {
  {
    MutexLock lock(&mu_);
    if (!free_.empty()) {
      const cudaEvent_t event = free_.back();
      free_.pop_back();
      return event;
    }
  }
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  cudaEvent_t event = nullptr;
  const absl::Status status =
      device_->Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags", "an event");
  if (!status.ok()) return status;
  return event;
}

void EventPool::Return(cudaEvent_t event) {
  MutexLock lock(&mu_);
  free_.push_back(event);
}

absl::StatusOr<EventPtr> EventPool::Record(const Stream& stream) {
  const absl::StatusOr<cudaEvent_t> event = Take();
  if (!event.ok()) return event.status();
  const EventPtr owner(new Event(*event), [pool = shared_from_this()](const Event* returned) {
    pool->Return(returned->get());
    delete returned;
  });
  const absl::Status status = device_->Check(cudaEventRecord(*event, stream.get()), "cudaEventRecord", "an event");
  if (!status.ok()) return status;
  return owner;
}

}  // namespace wsync::cuda
