// The host backend under contract: device memory is the test's memory, the data plane a gRPC server on a free port.
#ifndef WSYNC_TESTS_BACKEND_HOST_AGENT_H_
#define WSYNC_TESTS_BACKEND_HOST_AGENT_H_

#include <memory>
#include <string>

#include "server/backend/host/backend.h"
#include "tests/backend/contract/agent.h"

namespace grpc {
class Server;
}

namespace wsync::host {

class HostAgent final : public contract::Agent {
 public:
  explicit HostAgent(HostBackendOptions options = {.threads = 2, .unknown_session_patience = absl::Milliseconds(500)});
  ~HostAgent() override;

  Backend& backend() override { return backend_; }
  std::string root_address() override { return "127.0.0.1:" + std::to_string(port_); }
  void ToDevice(std::byte* device, const contract::Bytes& from) override;
  contract::Bytes FromDevice(const std::byte* device, int64_t bytes) override;

 private:
  HostBackend backend_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

inline contract::BackendParam HostParam() {
  return {.name = "host", .make = [](int32_t) { return std::make_unique<HostAgent>(); }};
}

}  // namespace wsync::host

#endif  // WSYNC_TESTS_BACKEND_HOST_AGENT_H_
