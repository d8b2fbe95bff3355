// The host quantizer: kernels' Encode over the worker pool.
#ifndef WSYNC_SERVER_BACKEND_HOST_QUANTIZER_H_
#define WSYNC_SERVER_BACKEND_HOST_QUANTIZER_H_

#include <memory>
#include <vector>

#include "server/backend/host/worker_pool.h"
#include "server/backend/quantizer.h"

namespace wsync::host {

// INVALID_ARGUMENT: not one address per catalog tensor, or one that is not aligned for its dtype (named).
absl::StatusOr<std::unique_ptr<Quantizer>> NewHostQuantizer(std::shared_ptr<const Plan> plan,
                                                            std::vector<const std::byte*> tensors, WorkerPool* pool);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_QUANTIZER_H_
