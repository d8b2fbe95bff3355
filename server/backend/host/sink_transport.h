// Ranks 1 and up of a session.
#ifndef WSYNC_SERVER_BACKEND_HOST_SINK_TRANSPORT_H_
#define WSYNC_SERVER_BACKEND_HOST_SINK_TRANSPORT_H_

#include <grpcpp/security/credentials.h>

#include <memory>

#include "server/backend/transport.h"

namespace wsync::host {

std::unique_ptr<Transport> NewSinkTransport(const SessionSpec& spec,
                                            std::shared_ptr<grpc::ChannelCredentials> credentials);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_SINK_TRANSPORT_H_
