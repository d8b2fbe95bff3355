#include "server/rpc/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <sys/stat.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/core/sync.h"
#include "server/rpc/address.h"
#include "server/rpc/listen.h"

namespace wsync {
namespace {

constexpr int kMaxMessageBytes = 4 << 20;    // gRPC's own default, kept: larger things are streamed in chunks
constexpr int kMaxMetadataBytes = 16 << 10;  // twice the default: errors with lists of names travel in metadata
// A peer that is stopped or cut off is noticed within 4 s, and memory that its socket holds comes back: until then the
// source cannot send a version again, and 5 s is what a stopped peer may cost the trainer. 3 s for an answer, because
// on a machine short of processors a live peer may need seconds, and must not lose its stream; heartbeats wait no
// longer.
constexpr int kKeepaliveTimeMs = 1000;  // also what gRPC keeps between two pings at least
constexpr int kKeepaliveTimeoutMs = 3000;
constexpr int kMinPingIntervalMs = 500;       // of a client: below what ours do, or the server would hang up on them
constexpr int kMinReconnectBackoffMs = 100;   // an agent that restarts is back within a second or two:
constexpr int kMaxReconnectBackoffMs = 2000;  // gRPC's default of two minutes would outlast every deadline here
constexpr int kMaxLocalReconnectBackoffMs = 200;  // a Unix socket costs nothing to try, and its client waits 800 ms
constexpr mode_t kOwnerOnly = 0177;  // umask of the socket: whoever can connect can read and publish weights
constexpr absl::Duration kLongestGrace = absl::Hours(24);

// umask belongs to the process; other threads' files made meanwhile come out stricter, never more open.
class ScopedUmask {
 public:
  explicit ScopedUmask(mode_t mask) : previous_(umask(mask)) {}
  ~ScopedUmask() { umask(previous_); }
  ScopedUmask(const ScopedUmask&) = delete;
  ScopedUmask& operator=(const ScopedUmask&) = delete;

 private:
  mode_t previous_;
};

void EnablePlugins() {
  static std::once_flag once;
  std::call_once(once, [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();  // a static link would drop its initializer
  });
}

void SetArguments(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two daemons on one port must be an error
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
}

}  // namespace

struct RpcServer::Impl {
  std::unique_ptr<grpc::Server> server;
  std::string address;
  Mutex mu;
  bool shut_down ABSL_GUARDED_BY(mu) = false;
};

RpcServer::RpcServer() : impl_(std::make_unique<Impl>()) {}
RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(ServerOptions options) {
  auto address = ParseAddress(options.address);
  if (!address.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot listen: ", address.status().message()));
  }
  EnablePlugins();
  grpc::ServerBuilder builder;
  SetArguments(&builder);
  int port = 0;
  builder.AddListeningPort(ToString(*address),
                           options.credentials ? options.credentials : grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : options.services) builder.RegisterService(service);

  auto result = std::unique_ptr<RpcServer>(new RpcServer);
  {
    auto lock = PrepareToListen(*address, options.config_key);
    if (!lock.ok()) return lock.status();
    std::optional<ScopedUmask> owner_only;
    if (address->is_unix) owner_only.emplace(kOwnerOnly);
    result->impl_->server = builder.BuildAndStart();
  }
  if (result->impl_->server == nullptr) {
    // The probe just now succeeded, so somebody else was faster, or the credentials are unusable.
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address,
                                               ": gRPC could not bind it or load its certificates; try again"));
  }
  if (!address->is_unix) address->port = static_cast<uint16_t>(port);
  result->impl_->address = ToString(*address);
  return result;
}

std::string RpcServer::address() const { return impl_->address; }

void RpcServer::SetServing(bool serving) { impl_->server->GetHealthCheckService()->SetServingStatus(serving); }

void RpcServer::Shutdown(absl::Duration grace) {
  if (impl_->server == nullptr) return;
  {
    MutexLock lock(&impl_->mu);
    if (std::exchange(impl_->shut_down, true)) return;
  }
  SetServing(false);
  impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + std::min(grace, kLongestGrace)));
  impl_->server->Wait();
}

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                          std::shared_ptr<grpc::ChannelCredentials> credentials) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kMinReconnectBackoffMs);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kMaxReconnectBackoffMs);
  const bool local = absl::StartsWith(address, "unix:");
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, local ? kMaxLocalReconnectBackoffMs : kMaxReconnectBackoffMs);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // agents are on one network: a web proxy has no part in it
  // One connection per channel: control messages must not queue behind another channel's payload.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials ? credentials : grpc::InsecureChannelCredentials(), args);
}

}  // namespace wsync
