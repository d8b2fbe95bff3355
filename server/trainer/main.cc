// wsync-trainer: the agent beside a training process.
#include <memory>
#include <utility>

#include "server/backend/host/backend.h"
#include "server/rpc/daemon.h"
#include "server/rpc/tls.h"
#include "server/trainer/trainer_agent.h"
#include "wsync/v1/config.pb.h"

namespace {

constexpr char kExamples[] =
    "  wsync-trainer --config /etc/wsync/trainer.yaml\n"
    "  wsync-trainer --local_socket unix:///tmp/trainer.sock --coordinator.listen 0.0.0.0:7470\n"
    "  WSYNC_JOB=grpo wsync-trainer --config trainer.yaml --check-config\n";

absl::StatusOr<std::unique_ptr<wsync::Daemon>> Start(const wsync::v1::TrainerConfig& config) {
  auto credentials = wsync::ChannelCredentialsFor(config.tls());
  if (!credentials.ok()) return credentials.status();
  wsync::host::HostBackendOptions options;
  options.threads = config.transfer().threads();
  options.channel_credentials = *std::move(credentials);
  options.authorize = [tls = config.tls()](const grpc::ServerContextBase& context) {
    return wsync::AuthorizePeer(tls, context);
  };
  return wsync::TrainerAgent::Start(config, std::make_unique<wsync::host::HostBackend>(std::move(options)));
}

}  // namespace

int main(int argc, char** argv) {
  wsync::v1::TrainerConfig config;
  wsync::DaemonSpec spec;
  spec.name = "wsync-trainer";
  spec.component = "trainer";
  spec.description = "Quantizes registered weights to FP8 and brings every version to the rollout agents.";
  spec.examples = kExamples;
  spec.config = &config;
  spec.start = [&config] { return Start(config); };
  return wsync::RunDaemon(argc, argv, spec);
}
