#include "tests/backend/host_agent.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstring>
#include <utility>

namespace wsync::host {

HostAgent::HostAgent(HostBackendOptions options) : backend_(std::move(options)) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
  // As the agents' server does: a dead connection is noticed, and clients may ping as often as they do.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.RegisterService(backend_.data_plane_service());
  server_ = builder.BuildAndStart();
}

HostAgent::~HostAgent() { server_->Shutdown(std::chrono::system_clock::now()); }

void HostAgent::ToDevice(std::byte* device, const contract::Bytes& from) {
  std::memcpy(device, from.data(), from.size());
}

contract::Bytes HostAgent::FromDevice(const std::byte* device, int64_t bytes) {
  return contract::Bytes(device, device + bytes);
}

}  // namespace wsync::host
