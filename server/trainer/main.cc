// wsync-trainer: the agent beside a training process.
#include <memory>
#include <utility>

#include "server/backend/make_backend.h"
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
  wsync::BackendChoice choice{.name = config.transfer().backend(),
                              .device = config.transfer().device(),
                              .nccl_max_ctas = config.transfer().nccl_max_ctas()};
  choice.host.threads = config.transfer().threads();
  choice.host.channel_credentials = *std::move(credentials);
  choice.host.authorize = [tls = config.tls()](const grpc::ServerContextBase& context) {
    return wsync::AuthorizePeer(tls, context);
  };
  auto backend = wsync::MakeBackend(std::move(choice));
  if (!backend.ok()) return backend.status();
  return wsync::TrainerAgent::Start(config, *std::move(backend));
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
