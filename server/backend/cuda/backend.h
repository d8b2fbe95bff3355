// The CUDA backend: one GPU. Device memory and CUDA IPC, grouped kernels, NCCL. This header needs neither CUDA's nor
// NCCL's; built where CMake finds both (WSYNC_HAVE_CUDA).
//
// Owned by main; everything made by it must go before it. Its Memory is thread-safe, and so is what the Backend tells;
// what it makes is used as the interfaces say. Order between quantizer, transport and loader is kept on the GPU by
// events: no call of theirs waits for it, but for Connect, Wait and Finish.
#ifndef WSYNC_SERVER_BACKEND_CUDA_BACKEND_H_
#define WSYNC_SERVER_BACKEND_CUDA_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/backend.h"

namespace wsync::cuda {

struct CudaBackendOptions {
  int device = 0;    // as CUDA numbers what this process sees
  int max_ctas = 0;  // thread blocks that NCCL may use for a broadcast, the same on every rank; 0: NCCL decides
};

class CudaBackend final : public Backend {
 public:
  // FAILED_PRECONDITION says what is missing (driver, GPU, NCCL) and what to do; RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(const CudaBackendOptions& options);
  ~CudaBackend() override;

  std::string name() const override { return "cuda"; }
  std::string fingerprint() const override;  // "nccl 2.28.9; max_ctas 16; NCCL_ALGO=Ring"
  std::string device_id() const override;    // "GPU-8f1c..."
  absl::Status health() const override;
  std::string Describe() const;  // GPU, and which NCCL from which file: for the log

  Memory& memory() override;
  absl::StatusOr<std::unique_ptr<Quantizer>> NewQuantizer(std::shared_ptr<const Plan> plan,
                                                          std::vector<const std::byte*> tensors) override;
  absl::StatusOr<std::unique_ptr<Loader>> NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                    std::vector<std::byte*> handles) override;
  // INVALID_ARGUMENT: a rank outside [0, world), a token that is not NewSessionToken's.
  absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const SessionSpec& spec) override;
  // An NCCL unique id: it holds a listening socket and a thread of NCCL's in this process until every rank came.
  std::string NewSessionToken() override;

 private:
  struct Parts;
  explicit CudaBackend(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_BACKEND_H_
