// The CUDA loader: kernels/load_cuda.h's grouped launches over tables and state that were made once.
#ifndef WSYNC_SERVER_BACKEND_CUDA_LOADER_H_
#define WSYNC_SERVER_BACKEND_CUDA_LOADER_H_

#include <memory>
#include <vector>

#include "server/backend/cuda/memory.h"
#include "server/backend/loader.h"

namespace wsync::cuda {

// Check and the applies never wait and allocate nothing on the device. An Apply of a bucket that was checked in the
// same version looks at the check's result itself, on the device, just before it writes: the host need not.
// INVALID_ARGUMENT: a table that is neither empty nor made for this plan, or that names a handle not given.
// RESOURCE_EXHAUSTED: no memory for the tables.
absl::StatusOr<std::unique_ptr<Loader>> NewCudaLoader(std::shared_ptr<const Device> device, CudaMemory& memory,
                                                      std::shared_ptr<EventPool> events,
                                                      std::shared_ptr<const Plan> plan, const ScatterTable& table,
                                                      const std::vector<std::byte*>& handles);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_LOADER_H_
