// Credentials for the TCP control and data planes, from the `tls` section: mTLS, or none.
#ifndef WSYNC_SERVER_RPC_TLS_H_
#define WSYNC_SERVER_RPC_TLS_H_

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_context.h>

#include <memory>

#include "absl/status/statusor.h"
#include "wsync/v1/config.pb.h"

namespace wsync {

// INVALID_ARGUMENT: LoadTlsFiles. Without TLS both give insecure credentials.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentialsFor(const v1::TlsConfig& tls);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ChannelCredentialsFor(const v1::TlsConfig& tls);

// OK when the peer's certificate carries one of allowed_peers (SAN), or TLS is off, or the list is empty.
// PERMISSION_DENIED says which identities it has. Checked at the head of every TCP call.
absl::Status AuthorizePeer(const v1::TlsConfig& tls, const grpc::ServerContextBase& context);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_TLS_H_
