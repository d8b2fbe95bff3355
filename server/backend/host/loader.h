// The host loader: kernels' digests and strided copies over the worker pool.
#ifndef WSYNC_SERVER_BACKEND_HOST_LOADER_H_
#define WSYNC_SERVER_BACKEND_HOST_LOADER_H_

#include <memory>
#include <vector>

#include "server/backend/host/worker_pool.h"
#include "server/backend/loader.h"

namespace wsync::host {

// INVALID_ARGUMENT: a table that is neither empty nor made for this plan, or that names a handle not given.
absl::StatusOr<std::unique_ptr<Loader>> NewHostLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                      std::vector<std::byte*> handles, WorkerPool* pool);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_LOADER_H_
