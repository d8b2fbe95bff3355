// The one GPU of an agent: who it is, whether it still works, and how its errors read.
//
// Shared by everything that a CudaBackend makes. Thread-safe.
#ifndef WSYNC_SERVER_BACKEND_CUDA_DEVICE_H_
#define WSYNC_SERVER_BACKEND_CUDA_DEVICE_H_

#include <driver_types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/core/sync.h"

namespace wsync::cuda {

class Device {
 public:
  // FAILED_PRECONDITION: no driver, no GPU, no such ordinal, a GPU that cannot be used; says what to do.
  static absl::StatusOr<std::shared_ptr<Device>> Open(int ordinal);

  int ordinal() const { return ordinal_; }
  const std::string& uuid() const { return uuid_; }  // "GPU-8f1c..."
  const std::string& name() const { return name_; }  // "GPU 0 (NVIDIA H200, GPU-8f1c...)", for messages

  int64_t total_bytes() const { return total_bytes_; }

  // Makes it the calling thread's device: what creates, allocates or launches needs that. Cheap when it is already.
  absl::Status MakeCurrent() const;
  // OK, or the error of `call` ("cudaMalloc"), made for `object` ("the encoded image"), on this device. Clears CUDA's
  // last error, so that it is not taken for a later call's. An error that loses the context also goes into health().
  absl::Status Check(cudaError_t error, const char* call, std::string_view object) const;

  // Records that nothing but a restart helps; the first reason counts.
  void Break(const absl::Status& why) const;
  absl::Status health() const;

 private:
  Device() = default;

  int ordinal_ = 0;
  std::string uuid_;
  std::string name_;
  int64_t total_bytes_ = 0;
  mutable Mutex mu_;
  mutable absl::Status health_ ABSL_GUARDED_BY(mu_);
};

// "GPU-" and lower-case hexadecimal digits, from either "GPU-8F1C..." or "8f1c...": what nvidia-smi and PyTorch print.
std::string NormalUuid(std::string_view text);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_DEVICE_H_
