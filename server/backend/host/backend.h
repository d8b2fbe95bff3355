// The host backend: shared memory, SIMD on the CPU, gRPC streams. Runs anywhere, and under sanitizers.
//
// Owned by main. Everything made by it must go before it, and the server that data_plane_service() is registered with
// must be shut down before it. That server has to ping its connections (GRPC_ARG_KEEPALIVE_TIME_MS): only a closed
// connection gives memory back that a stopped peer's socket still holds, and a Transport waits for that when it goes.
#ifndef WSYNC_SERVER_BACKEND_HOST_BACKEND_H_
#define WSYNC_SERVER_BACKEND_HOST_BACKEND_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/backend.h"

namespace grpc {
class ChannelCredentials;
class ServerContextBase;
}  // namespace grpc

namespace wsync::host {

struct HostBackendOptions {
  int threads = 0;                                                // that encode, check and copy; 0: one per CPU
  std::shared_ptr<grpc::ChannelCredentials> channel_credentials;  // of a sink towards the source; null: insecure
  // May this peer open a data stream? Called at the head of every call; null: any peer that knows a token.
  std::function<absl::Status(const grpc::ServerContextBase&)> authorize;
  // How long a sink may be there before the source opened the session: both learn of it within one message's time.
  absl::Duration unknown_session_patience = absl::Seconds(5);
};

class HostBackend final : public Backend {
 public:
  explicit HostBackend(HostBackendOptions options);
  ~HostBackend() override;

  std::string name() const override { return "host"; }
  Memory& memory() override;
  absl::StatusOr<std::unique_ptr<Quantizer>> NewQuantizer(std::shared_ptr<const Plan> plan,
                                                          std::vector<const std::byte*> tensors) override;
  absl::StatusOr<std::unique_ptr<Loader>> NewLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                    std::vector<std::byte*> handles) override;
  // INVALID_ARGUMENT: a rank outside [0, world), an empty token, a sink without the source's address.
  absl::StatusOr<std::unique_ptr<Transport>> NewTransport(const SessionSpec& spec) override;
  std::string NewSessionToken() override;                         // 128 random bits
  std::string NewRankToken(const std::string& session) override;  // likewise, of its own
  grpc::Service* data_plane_service() override;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_BACKEND_H_
