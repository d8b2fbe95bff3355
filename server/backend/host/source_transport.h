// Rank 0 of a session.
#ifndef WSYNC_SERVER_BACKEND_HOST_SOURCE_TRANSPORT_H_
#define WSYNC_SERVER_BACKEND_HOST_SOURCE_TRANSPORT_H_

#include <memory>

#include "server/backend/host/session_registry.h"
#include "server/backend/host/worker_pool.h"
#include "server/backend/transport.h"

namespace wsync::host {

std::unique_ptr<Transport> NewSourceTransport(const SessionSpec& spec, std::shared_ptr<SessionRegistry> registry,
                                              WorkerPool* pool);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_SOURCE_TRANSPORT_H_
