#include "server/rollout/rollout_agent.h"

#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/rollout/rollout_service.h"
#include "server/rollout/sink_controller.h"
#include "server/rpc/server.h"
#include "server/rpc/version.h"

namespace wsync {
namespace {

// For calls that still run once the engine was let go; they only have to notice.
constexpr absl::Duration kCallGrace = absl::Milliseconds(200);

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

std::string NewIncarnation() {
  std::string bytes(16, '\0');
  if (getentropy(bytes.data(), bytes.size()) != 0) std::abort();  // without randomness anybody could pass for us
  return bytes;
}

v1::Join MakeJoin(const v1::RolloutConfig& config, const Backend& backend) {
  v1::Join join;
  join.set_protocol(kProtocolVersion);
  join.set_job(config.job());
  join.set_name(config.name().empty() ? absl::StrCat(config.replica(), "/", config.rank()) : config.name());
  join.set_replica(config.replica());
  join.set_rank(config.rank());
  join.set_replica_size(config.replica_size());
  join.set_host(HostName());
  join.set_pid(getpid());
  join.set_backend(backend.name());
  join.set_software(std::string(kSoftware));
  join.set_device_id(backend.device_id());
  join.set_transport(backend.fingerprint());
  join.set_incarnation(NewIncarnation());
  join.set_idle_receiver(config.transfer().sink_mode() == "in_place");
  return join;
}

SinkControllerOptions OptionsFrom(const v1::RolloutConfig& config, const Backend& backend,
                                  std::shared_ptr<grpc::ChannelCredentials> credentials) {
  const v1::SinkConfig& transfer = config.transfer();
  const SinkMode mode = transfer.sink_mode() == "in_place" ? SinkMode::kInPlace : SinkMode::kStaged;
  const absl::Duration connect_timeout = absl::Milliseconds(transfer.connect_timeout_ms());
  return SinkControllerOptions{
      .sink = {.mode = mode},
      .receiver = {.mode = mode, .ring_slots = transfer.ring_slots(), .connect_timeout = connect_timeout},
      .member = {.address = config.coordinator(),
                 .credentials = std::move(credentials),
                 .join = MakeJoin(config, backend),
                 .attempt_timeout = connect_timeout,
                 .reconnect_max = absl::Milliseconds(transfer.reconnect_max_ms())}};
}

}  // namespace

// Each member uses the ones before it.
struct RolloutAgent::Impl {
  Impl(const v1::RolloutConfig& config, std::unique_ptr<Backend> owned,
       std::shared_ptr<grpc::ChannelCredentials> credentials)
      : coordinator(config.coordinator()),
        backend(std::move(owned)),
        controller(OptionsFrom(config, *backend, std::move(credentials)), backend.get()),
        service(&controller) {}

  const std::string coordinator;
  const std::unique_ptr<Backend> backend;
  SinkController controller;
  RolloutService service;
  std::unique_ptr<RpcServer> server;
};

absl::StatusOr<std::unique_ptr<RolloutAgent>> RolloutAgent::Start(
    const v1::RolloutConfig& config, std::unique_ptr<Backend> backend,
    std::shared_ptr<grpc::ChannelCredentials> credentials) {
  auto impl = std::make_unique<Impl>(config, std::move(backend), std::move(credentials));
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start({.address = config.local_socket(), .services = {&impl->service}, .config_key = "local_socket"});
  if (!server.ok()) return server.status();
  impl->server = *std::move(server);
  impl->server->SetServing(true);
  impl->controller.Start();
  return std::unique_ptr<RolloutAgent>(new RolloutAgent(std::move(impl)));
}

RolloutAgent::RolloutAgent(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

RolloutAgent::~RolloutAgent() { Stop(absl::ZeroDuration()); }

void RolloutAgent::Stop(absl::Duration grace) {
  if (impl_ == nullptr) return;
  impl_->server->SetServing(false);
  impl_->controller.Drain(grace);
  // The controller still runs: it is what ends the calls.
  impl_->server->Shutdown(kCallGrace);
  impl_.reset();
}

std::string RolloutAgent::Banner() const {
  return absl::StrCat("listening on ", local_address(), ", coordinator at ", impl_->coordinator);
}

absl::Status RolloutAgent::Health() const {
  absl::Status health = WSYNC_FAILPOINT("rollout.health");
  if (impl_ == nullptr) return health;
  health.Update(impl_->backend->health());
  health.Update(impl_->controller.Look(MonotonicNow()));
  return health;
}

std::string RolloutAgent::local_address() const { return impl_->server->address(); }

}  // namespace wsync
