#include "server/backend/make_backend.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#ifdef WSYNC_HAVE_CUDA
#include "server/backend/cuda/backend.h"
#endif

namespace wsync {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(BackendChoice choice) {
  if (choice.name == "host") return std::make_unique<host::HostBackend>(std::move(choice.host));
#ifdef WSYNC_HAVE_CUDA
  if (choice.name == "cuda") {
    return cuda::CudaBackend::Create({.device = choice.device, .max_ctas = choice.nccl_max_ctas});
  }
#endif
  return absl::FailedPreconditionError(absl::StrCat("transfer.backend is '", choice.name,
                                                    "', which this binary was built without: build it where nvcc and "
                                                    "nccl.h are found, or set transfer.backend: host"));
}

}  // namespace wsync
