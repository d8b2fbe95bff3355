// Status codes of gRPC and abseil are the same numbers. Stateless; server/rpc has its own twin of this: the backend
// does not depend on it.
#ifndef WSYNC_SERVER_BACKEND_HOST_GRPC_STATUS_H_
#define WSYNC_SERVER_BACKEND_HOST_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace wsync::host {

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

inline absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_GRPC_STATUS_H_
