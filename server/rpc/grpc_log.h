// gRPC's own log, taken into ours, and what only it tells: that a listener has ended.
//
// gRPC 1.51 gives a listener up for good when accept fails, out of descriptors say: connections that are open go on,
// new ones wait in the kernel for ever. (Later versions try again.)
#ifndef WSYNC_SERVER_RPC_GRPC_LOG_H_
#define WSYNC_SERVER_RPC_GRPC_LOG_H_

#include "absl/status/status.h"

namespace wsync {

// Once per process, before any server.
void TakeGrpcLog();
// INTERNAL, from when a listener of this process has ended by itself. Any thread.
absl::Status ListenersHealth();

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_GRPC_LOG_H_
