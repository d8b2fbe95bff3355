// Connecting to an agent, with errors that say which agent is missing and how to start it.
#ifndef WSYNC_CLIENT_LOCAL_CONNECT_H_
#define WSYNC_CLIENT_LOCAL_CONNECT_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wsync {

// `socket`: "unix:///path". UNAVAILABLE within `timeout`: "no wsync-trainer answers at unix:///...: start one, or give
// its socket (local_socket in trainer.yaml)". INVALID_ARGUMENT: not a unix:// address.
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectLocal(const std::string& socket, absl::Duration timeout,
                                                            const std::string& daemon, const std::string& where);

}  // namespace wsync

#endif  // WSYNC_CLIENT_LOCAL_CONNECT_H_
