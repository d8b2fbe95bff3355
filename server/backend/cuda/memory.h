// Device memory, and CUDA IPC handles of it.
//
// Handles are the ordinary ones of cudaIpcGetMemHandle: PyTorch's caching allocator gives the same. A handle names an
// allocation by its first byte; where in it something lies is the client's to say (TensorPlace, Destination). Every
// allocation is mapped once, however often it is opened. CUDA knows no read-only mapping: Access is not enforced.
#ifndef WSYNC_SERVER_BACKEND_CUDA_MEMORY_H_
#define WSYNC_SERVER_BACKEND_CUDA_MEMORY_H_

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "server/backend/cuda/device.h"
#include "server/backend/cuda/stream.h"
#include "server/backend/memory.h"
#include "server/core/sync.h"

namespace wsync::cuda {

class CudaMemory final : public Memory {
 public:
  static absl::StatusOr<std::unique_ptr<CudaMemory>> Create(std::shared_ptr<const Device> device);

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes, std::string_view purpose) override;
  // In units of 2 MiB: CUDA cuts smaller allocations out of blocks that a handle would share as a whole.
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateShared(int64_t bytes, std::string_view purpose,
                                                         MemoryHandle* handle) override;
  // The exporting process must not free the allocation before the last Buffer of it is gone.
  absl::StatusOr<std::unique_ptr<Buffer>> Open(const MemoryHandle& handle, Access access) override;

  absl::Status CheckEvent(const EventHandle& handle) const override;
  absl::StatusOr<std::unique_ptr<StreamEvent>> OpenEvent(const EventHandle& handle) override;

  // Device memory with a copy of host memory, which may go when this returns.
  absl::StatusOr<std::unique_ptr<Buffer>> Upload(const void* data, int64_t bytes, std::string_view purpose);
  // Into a buffer of this device with room for it. REQUIRES: nothing on the device reads or writes there now.
  absl::Status Write(const Buffer& to, const void* data, int64_t bytes, std::string_view purpose);
  // Allocations of other processes that are mapped now.
  int64_t mappings() const;

 private:
  class Mapping;
  class MappedBuffer;

  CudaMemory(std::shared_ptr<const Device> device, std::unique_ptr<Stream> stream)
      : device_(std::move(device)), stream_(std::move(stream)) {}
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateRounded(int64_t bytes, int64_t unit, std::string_view purpose);
  absl::Status Exhausted(int64_t bytes, std::string_view purpose) const;
  absl::Status CheckHandle(const CudaIpcHandle& handle) const;
  absl::StatusOr<std::shared_ptr<Mapping>> Map(const std::string& handle);

  const std::shared_ptr<const Device> device_;
  const std::unique_ptr<Stream> stream_;  // for zeroes and uploads, of any thread; each waits for its own
  mutable Mutex mu_;
  std::map<std::string, std::weak_ptr<Mapping>> mappings_ ABSL_GUARDED_BY(mu_);  // by handle
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_MEMORY_H_
