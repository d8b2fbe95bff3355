// What there is on this machine, what a GPU reaches by itself, and plain copies to and from it. For `wsync doctor`,
// benchmarks and tests; no agent uses it.
//
// Blocking; a Probe is used by one thread at a time.
#ifndef WSYNC_SERVER_BACKEND_CUDA_PROBE_H_
#define WSYNC_SERVER_BACKEND_CUDA_PROBE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace wsync::cuda {

struct GpuFacts {
  std::string name;  // "GPU 0 (NVIDIA H200, GPU-8f1c...)"
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;
};

// GPUs that this process sees; 0 where there is no driver.
int DeviceCount();
// FAILED_PRECONDITION: no such GPU, or one that cannot be used.
absl::StatusOr<GpuFacts> FactsOf(int device);
// "2.28.9 from /usr/lib/x86_64-linux-gnu/libnccl.so.2". FAILED_PRECONDITION says what is missing.
absl::StatusOr<std::string> NcclInUse();

class Probe {
 public:
  // FAILED_PRECONDITION: no such GPU.
  static absl::StatusOr<std::unique_ptr<Probe>> Open(int device);
  ~Probe();

  std::string device_name() const;  // "GPU 0 (NVIDIA H200, GPU-8f1c...)"
  // Of the whole GPU, of every process on it.
  absl::StatusOr<int64_t> UsedBytes();
  absl::Status Upload(std::byte* to, const void* from, int64_t bytes);
  absl::Status Download(void* to, const std::byte* from, int64_t bytes);
  // Seconds of one device-to-device copy of `bytes`, which lie `bytes` apart from their copy in memory of its own: the
  // median of `repeats`, timed by events. RESOURCE_EXHAUSTED where twice the bytes do not fit.
  absl::StatusOr<double> CopySeconds(int64_t bytes, int repeats);

 private:
  struct Parts;
  explicit Probe(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_PROBE_H_
