// The data plane over NCCL: broadcasts from rank 0 through one communicator, enqueued on a stream of its own.
#ifndef WSYNC_SERVER_BACKEND_CUDA_TRANSPORT_H_
#define WSYNC_SERVER_BACKEND_CUDA_TRANSPORT_H_

#include <memory>

#include "server/backend/cuda/nccl_session.h"
#include "server/backend/transport.h"

namespace wsync::cuda {

// A peer that is gone is not noticed (NCCL over NVLink hears nothing): Cancel is what ends a broadcast then. A failed
// broadcast is complete when the communicator has ended, at most 5 s after the failure; if it does not end, the device
// is marked broken (Backend::health). A session of one rank has no communicator: a broadcast is complete with `after`.
std::unique_ptr<Transport> NewNcclTransport(std::shared_ptr<NcclSession> session);
std::unique_ptr<Transport> NewLoneTransport();

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_TRANSPORT_H_
