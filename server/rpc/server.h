// A gRPC server with what every wsync server has: health, reflection, size caps, keepalive, a bounded shutdown.
#ifndef WSYNC_SERVER_RPC_SERVER_H_
#define WSYNC_SERVER_RPC_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wsync {

struct ServerOptions {
  std::string address;  // "host:port" (port 0: any) or "unix:///path" (a stale socket file is replaced, mode 0600)
  std::shared_ptr<grpc::ServerCredentials> credentials;  // null: insecure (Unix sockets)
  std::vector<grpc::Service*> services;
  std::string config_key;  // named in errors as the setting to change: "coordinator.listen"; may be empty
};

class RpcServer {
 public:
  // Names address and reason: "cannot listen on 127.0.0.1:7470: address already in use; is another wsync agent running
  // there? Stop it, or set coordinator.listen to a free port". A Unix socket on which somebody answers is never taken
  // over: ALREADY_EXISTS.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(ServerOptions options);
  ~RpcServer();                         // Shutdown with no grace
  std::string address() const;          // with the real port
  void SetServing(bool serving);        // health: NOT_SERVING while draining
  void Shutdown(absl::Duration grace);  // refuses new calls, lets running ones end, then cancels them

 private:
  RpcServer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A channel with keepalive set so that a peer that is stopped or cut off is noticed within 4 s.
std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          std::shared_ptr<grpc::ChannelCredentials> credentials);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_SERVER_H_
