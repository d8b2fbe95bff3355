// The CUDA quantizer: kernels/quantize_cuda.h's grouped launches over tables and state that were made once.
#ifndef WSYNC_SERVER_BACKEND_CUDA_QUANTIZER_H_
#define WSYNC_SERVER_BACKEND_CUDA_QUANTIZER_H_

#include <memory>
#include <vector>

#include "server/backend/cuda/memory.h"
#include "server/backend/quantizer.h"

namespace wsync::cuda {

// Encode never waits and allocates nothing on the device. What it enqueued cannot be taken back: after a Cancel it
// still runs, within the time of one version (or, behind a broadcast, once that has ended). A NaN or infinity is known,
// and named, when Finish has read the results back; bytes of that version may be on the wire by then.
// INVALID_ARGUMENT: not one address per catalog tensor, or one that is not aligned for its dtype (named).
// RESOURCE_EXHAUSTED: no memory for the tables.
absl::StatusOr<std::unique_ptr<Quantizer>> NewCudaQuantizer(std::shared_ptr<const Device> device, CudaMemory& memory,
                                                            std::shared_ptr<EventPool> events,
                                                            std::shared_ptr<const Plan> plan,
                                                            std::vector<const std::byte*> tensors);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_QUANTIZER_H_
