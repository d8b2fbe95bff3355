#include "server/backend/cuda/probe.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/backend/cuda/memory.h"
#include "server/backend/cuda/nccl_library.h"
#include "server/backend/cuda/stream.h"

namespace wsync::cuda {
namespace {

// Events that carry times; EventPool's do not.
class Timer {
 public:
  Timer(const Device& device, const Stream& stream) : device_(device), stream_(stream) {
    for (cudaEvent_t& event : events_)
      status_.Update(device_.Check(cudaEventCreate(&event), "cudaEventCreate", "a timer"));
  }
  ~Timer() {
    for (const cudaEvent_t event : events_) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
  void Begin() { Record(0); }
  absl::StatusOr<double> EndSeconds() {
    Record(1);
    float ms = 0;
    if (status_.ok()) status_ = device_.Check(cudaEventSynchronize(events_[1]), "cudaEventSynchronize", "a timed copy");
    if (status_.ok()) {
      status_ =
          device_.Check(cudaEventElapsedTime(&ms, events_[0], events_[1]), "cudaEventElapsedTime", "a timed copy");
    }
    if (!status_.ok()) return status_;
    return ms / 1e3;
  }

 private:
  void Record(int which) {
    if (status_.ok())
      status_ = device_.Check(cudaEventRecord(events_[which], stream_.get()), "cudaEventRecord", "a timer");
  }
  const Device& device_;
  const Stream& stream_;
  cudaEvent_t events_[2] = {};
  absl::Status status_;
};

absl::StatusOr<GpuFacts> Facts(const Device& device) {
  if (absl::Status status = device.MakeCurrent(); !status.ok()) return status;
  size_t free = 0, total = 0;
  const absl::Status status = device.Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo", "free memory");
  if (!status.ok()) return status;
  return GpuFacts{device.name(), static_cast<int64_t>(total), static_cast<int64_t>(free)};
}

}  // namespace

struct Probe::Parts {
  std::shared_ptr<const Device> device;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<CudaMemory> memory;

  absl::Status Copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind) {
    if (absl::Status status = device->MakeCurrent(); !status.ok()) return status;
    const absl::Status status = device->Check(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream->get()), "cudaMemcpyAsync", "a plain copy");
    return status.ok() ? stream->Synchronize("a plain copy") : status;
  }
};

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

absl::StatusOr<GpuFacts> FactsOf(int device) {
  const auto opened = Device::Open(device);
  if (!opened.ok()) return opened.status();
  return Facts(**opened);
}

absl::StatusOr<std::string> NcclInUse() {
  const auto nccl = NcclLibrary::Load();
  if (!nccl.ok()) return nccl.status();
  return absl::StrCat((*nccl)->VersionText(), " from ", (*nccl)->path());
}

absl::StatusOr<std::unique_ptr<Probe>> Probe::Open(int device) {
  auto parts = std::make_unique<Parts>();
  auto opened = Device::Open(device);
  if (!opened.ok()) return opened.status();
  parts->device = *std::move(opened);
  auto stream = Stream::Create(parts->device);
  if (!stream.ok()) return stream.status();
  parts->stream = *std::move(stream);
  auto memory = CudaMemory::Create(parts->device);
  if (!memory.ok()) return memory.status();
  parts->memory = *std::move(memory);
  return std::unique_ptr<Probe>(new Probe(std::move(parts)));
}

Probe::Probe(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Probe::~Probe() = default;

std::string Probe::device_name() const { return parts_->device->name(); }

absl::StatusOr<int64_t> Probe::UsedBytes() {
  const auto facts = Facts(*parts_->device);
  if (!facts.ok()) return facts.status();
  return facts->total_bytes - facts->free_bytes;
}

absl::Status Probe::Upload(std::byte* to, const void* from, int64_t bytes) {
  return parts_->Copy(to, from, bytes, cudaMemcpyHostToDevice);
}

absl::Status Probe::Download(void* to, const std::byte* from, int64_t bytes) {
  return parts_->Copy(to, from, bytes, cudaMemcpyDeviceToHost);
}

absl::StatusOr<double> Probe::CopySeconds(int64_t bytes, int repeats) {
  auto from = parts_->memory->Allocate(bytes, "a copy to time");
  if (!from.ok()) return from.status();
  auto to = parts_->memory->Allocate(bytes, "a copy to time");
  if (!to.ok()) return to.status();
  if (absl::Status status = parts_->device->MakeCurrent(); !status.ok()) return status;
  Timer timer(*parts_->device, *parts_->stream);
  std::vector<double> seconds;
  for (int i = 0; i <= repeats; ++i) {
    timer.Begin();
    const absl::Status status =
        parts_->device->Check(cudaMemcpyAsync((*to)->data(), (*from)->data(), static_cast<size_t>(bytes),
                                              cudaMemcpyDeviceToDevice, parts_->stream->get()),
                              "cudaMemcpyAsync", "a copy to time");
    if (!status.ok()) return status;
    const absl::StatusOr<double> took = timer.EndSeconds();
    if (!took.ok()) return took.status();
    if (i > 0) seconds.push_back(*took);  // the first one warms up
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace wsync::cuda
