// wsync-rollout: the agent beside one rank of an inference engine.
#include "server/backend/make_backend.h"
#include "server/rollout/rollout_agent.h"
#include "server/rpc/daemon.h"
#include "server/rpc/tls.h"
#include "wsync/v1/config.pb.h"

namespace {

constexpr char kExamples[] =
    "  wsync-rollout --config /etc/wsync/rollout.yaml\n"
    "  wsync-rollout --coordinator trainer-0:7470 --replica replica-3\n"
    "  wsync-rollout --transfer.sink_mode in_place     # no second copy; the engine is paused during the transfer\n"
    "  wsync-rollout --config rollout.yaml --check-config\n";

absl::StatusOr<std::unique_ptr<wsync::Daemon>> StartAgent(const wsync::v1::RolloutConfig& config) {
  auto credentials = wsync::ChannelCredentialsFor(config.tls());
  if (!credentials.ok()) return credentials.status();
  wsync::BackendChoice choice{.name = config.transfer().backend(),
                              .device = config.transfer().device(),
                              .nccl_max_ctas = config.transfer().nccl_max_ctas()};
  choice.host.threads = config.transfer().threads();
  choice.host.channel_credentials = *credentials;
  auto backend = wsync::MakeBackend(std::move(choice));
  if (!backend.ok()) return backend.status();
  return wsync::RolloutAgent::Start(config, *std::move(backend), *credentials);
}

}  // namespace

int main(int argc, char** argv) {
  wsync::v1::RolloutConfig config;
  return wsync::RunDaemon(
      argc, argv,
      {.name = "wsync-rollout",
       .component = "rollout",
       .description = "Receives versions of a model's weights and hands them to the engine beside it.",
       .examples = kExamples,
       .config = &config,
       .start = [&config] { return StartAgent(config); }});
}
