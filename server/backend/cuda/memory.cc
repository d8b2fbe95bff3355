#include "server/backend/cuda/memory.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/backend/cuda/stream_event.h"

namespace wsync::cuda {
namespace {

constexpr int64_t kSharedUnit = int64_t{2} << 20;
constexpr unsigned kDriverVersion = 12000;  // whose cuMemGetAddressRange is meant

class DeviceBuffer final : public Buffer {
 public:
  DeviceBuffer(std::shared_ptr<const Device> device, void* data, int64_t bytes) : device_(std::move(device)) {
    data_ = static_cast<std::byte*>(data);
    bytes_ = bytes;
  }
  ~DeviceBuffer() override {
    if (device_->MakeCurrent().ok()) device_->Check(cudaFree(data_), "cudaFree", "a buffer").IgnoreError();
  }

 private:
  const std::shared_ptr<const Device> device_;
};

// The size of the allocation that begins at `base`. Only the driver's own interface tells; it is asked for by name,
// since nothing else needs libcuda at link time.
absl::StatusOr<int64_t> AllocationBytes(const Device& device, const void* base) {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const absl::Status status = device.Check(
      cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &symbol, kDriverVersion, cudaEnableDefault, &found),
      "cudaGetDriverEntryPointByVersion", "cuMemGetAddressRange");
  if (!status.ok()) return status;
  if (found != cudaDriverEntryPointSuccess || symbol == nullptr) {
    return absl::FailedPreconditionError("the CUDA driver has no cuMemGetAddressRange; install a newer one");
  }
  CUdeviceptr begin = 0;
  size_t bytes = 0;
  const CUresult result =
      reinterpret_cast<PFN_cuMemGetAddressRange_v3020>(symbol)(&begin, &bytes, reinterpret_cast<CUdeviceptr>(base));
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("cuMemGetAddressRange for a mapping on ", device.name(), ": CUDA error ",
                                            static_cast<int>(result)));
  }
  return static_cast<int64_t>(bytes) - static_cast<int64_t>(reinterpret_cast<CUdeviceptr>(base) - begin);
}

}  // namespace

// One allocation of another process, mapped here.
class CudaMemory::Mapping {
 public:
  Mapping(std::shared_ptr<const Device> device, void* base, int64_t bytes)
      : device_(std::move(device)), base_(base), bytes_(bytes) {}
  ~Mapping() {
    if (!device_->MakeCurrent().ok()) return;
    device_->Check(cudaIpcCloseMemHandle(base_), "cudaIpcCloseMemHandle", "a mapping").IgnoreError();
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  void* base() const { return base_; }
  int64_t bytes() const { return bytes_; }

 private:
  const std::shared_ptr<const Device> device_;
  void* const base_;
  const int64_t bytes_;
};

class CudaMemory::MappedBuffer final : public Buffer {
 public:
  MappedBuffer(std::shared_ptr<Mapping> mapping, int64_t bytes) : mapping_(std::move(mapping)) {
    data_ = static_cast<std::byte*>(mapping_->base());
    bytes_ = bytes;
  }

 private:
  const std::shared_ptr<Mapping> mapping_;
};

absl::StatusOr<std::unique_ptr<CudaMemory>> CudaMemory::Create(std::shared_ptr<const Device> device) {
  absl::StatusOr<std::unique_ptr<Stream>> stream = Stream::Create(device);
  if (!stream.ok()) return stream.status();
  return std::unique_ptr<CudaMemory>(new CudaMemory(std::move(device), *std::move(stream)));
}

absl::Status CudaMemory::Exhausted(int64_t bytes, std::string_view purpose) const {
  size_t free = 0, total = 0;
  const absl::Status status = device_->Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo", purpose);
  if (!status.ok()) return status;
  return absl::ResourceExhaustedError(absl::StrCat(
      "cannot allocate ", bytes, " bytes of memory of ", device_->name(), " for ", std::string(purpose), ": ", free,
      " of its ", total, " bytes are available; free some, or choose a memory mode that needs less (ring, in_place)"));
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaMemory::AllocateRounded(int64_t bytes, int64_t unit,
                                                                    std::string_view purpose) {
  if (bytes <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose),
                                                   ": a buffer has at least one byte"));
  }
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  if (bytes > device_->total_bytes()) return Exhausted(bytes, purpose);
  void* data = nullptr;
  const auto rounded = static_cast<size_t>((bytes + unit - 1) / unit * unit);
  absl::Status status = device_->Check(cudaMalloc(&data, rounded), "cudaMalloc", purpose);
  if (absl::IsResourceExhausted(status)) return Exhausted(bytes, purpose);
  if (!status.ok()) return status;
  auto buffer = std::make_unique<DeviceBuffer>(device_, data, bytes);
  status = device_->Check(cudaMemsetAsync(data, 0, rounded, stream_->get()), "cudaMemsetAsync", purpose);
  if (status.ok()) status = stream_->Synchronize(purpose);
  if (!status.ok()) return status;
  return buffer;
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaMemory::Allocate(int64_t bytes, std::string_view purpose) {
  return AllocateRounded(bytes, 1, purpose);
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaMemory::AllocateShared(int64_t bytes, std::string_view purpose,
                                                                   MemoryHandle* handle) {
  auto buffer = AllocateRounded(bytes, kSharedUnit, purpose);
  if (!buffer.ok()) return buffer;
  cudaIpcMemHandle_t ipc = {};
  const absl::Status status =
      device_->Check(cudaIpcGetMemHandle(&ipc, (*buffer)->data()), "cudaIpcGetMemHandle", purpose);
  if (!status.ok()) return status;
  *handle = CudaIpcHandle{
      .handle = std::string(ipc.reserved, sizeof(ipc.reserved)), .device_uuid = device_->uuid(), .bytes = bytes};
  return buffer;
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaMemory::Upload(const void* data, int64_t bytes, std::string_view purpose) {
  auto buffer = Allocate(std::max<int64_t>(bytes, 1), purpose);
  if (!buffer.ok()) return buffer;
  if (absl::Status status = Write(**buffer, data, bytes, purpose); !status.ok()) return status;
  return buffer;
}

absl::Status CudaMemory::Write(const Buffer& to, const void* data, int64_t bytes, std::string_view purpose) {
  if (bytes == 0) return absl::OkStatus();
  absl::Status status = device_->MakeCurrent();
  if (!status.ok()) return status;
  status = device_->Check(
      cudaMemcpyAsync(to.data(), data, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_->get()),
      "cudaMemcpyAsync", purpose);
  return status.ok() ? stream_->Synchronize(purpose) : status;
}

absl::Status CudaMemory::CheckHandle(const CudaIpcHandle& handle) const {
  if (handle.handle.size() != sizeof(cudaIpcMemHandle_t)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open a CUDA IPC handle of ", handle.handle.size(),
                                                   " bytes; cudaIpcGetMemHandle gives ", sizeof(cudaIpcMemHandle_t)));
  }
  if (handle.bytes <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot open a CUDA IPC handle that claims ", handle.bytes, " bytes"));
  }
  if (NormalUuid(handle.device_uuid) != device_->uuid()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot open a CUDA IPC handle of ", handle.bytes, " bytes: it names memory of '",
                     handle.device_uuid, "', this agent runs on ", device_->name(),
                     "; start it on the GPU of its client process (transfer.device, CUDA_VISIBLE_DEVICES)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<CudaMemory::Mapping>> CudaMemory::Map(const std::string& handle) {
  {
    MutexLock lock(&mu_);
    std::erase_if(mappings_, [](const auto& entry) { return entry.second.expired(); });
    if (const auto found = mappings_.find(handle); found != mappings_.end()) {
      if (std::shared_ptr<Mapping> mapping = found->second.lock()) return mapping;
    }
  }
  cudaIpcMemHandle_t ipc = {};
  std::memcpy(&ipc, handle.data(), sizeof(ipc));
  void* base = nullptr;
  const cudaError_t error = cudaIpcOpenMemHandle(&base, ipc, cudaIpcMemLazyEnablePeerAccess);
  if (absl::Status status = device_->Check(error, "cudaIpcOpenMemHandle", "memory of another process"); !status.ok()) {
    if (!absl::IsInternal(status) || !device_->health().ok()) return status;
    return absl::NotFoundError(absl::StrCat(
        std::string(status.message()),
        "; does the process that exported it still run, is it another process than this one, and do both share a host "
        "and an IPC namespace (containers: ipc=host)?"));
  }
  // From here on the mapping is closed with its last reference. Another thread may have opened the same meanwhile: CUDA
  // counts, and gives both the same address.
  const absl::StatusOr<int64_t> bytes = AllocationBytes(*device_, base);
  auto mapping = std::make_shared<Mapping>(device_, base, bytes.value_or(0));
  if (!bytes.ok()) return bytes.status();
  MutexLock lock(&mu_);
  mappings_[handle] = mapping;
  return mapping;
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaMemory::Open(const MemoryHandle& handle, Access /*access*/) {
  const auto* ipc = std::get_if<CudaIpcHandle>(&handle);
  if (ipc == nullptr) {
    return absl::InvalidArgumentError(
        "cannot open shared memory on the cuda backend; export CUDA memory (cudaIpcGetMemHandle), or run the agent "
        "with "
        "the host backend");
  }
  if (absl::Status status = CheckHandle(*ipc); !status.ok()) return status;
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<Mapping>> mapping = Map(ipc->handle);
  if (!mapping.ok()) return mapping.status();
  if ((*mapping)->bytes() < ipc->bytes) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open a CUDA IPC handle on ", device_->name(), ": it claims ",
                                                   ipc->bytes, " bytes, the allocation has ", (*mapping)->bytes()));
  }
  return std::make_unique<MappedBuffer>(*std::move(mapping), ipc->bytes);
}

absl::Status CudaMemory::CheckEvent(const EventHandle& handle) const { return CheckEventHandle(*device_, handle); }

absl::StatusOr<std::unique_ptr<StreamEvent>> CudaMemory::OpenEvent(const EventHandle& handle) {
  return CudaStreamEvent::Open(device_, handle);
}

int64_t CudaMemory::mappings() const {
  MutexLock lock(&mu_);
  return static_cast<int64_t>(
      std::count_if(mappings_.begin(), mappings_.end(), [](const auto& entry) { return !entry.second.expired(); }));
}

}  // namespace wsync::cuda
