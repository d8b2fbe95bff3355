// The smallest daemon that RunDaemon can run: a status service on local_socket. The job's name chooses how it ends.
#include <unistd.h>

#include <iostream>
#include <memory>
#include <utility>

#include "server/rpc/daemon.h"
#include "server/rpc/server.h"
#include "tests/rpc/rpc_testing.h"
#include "wsync/v1/config.pb.h"

namespace wsync {
namespace {

class TestDaemon final : public Daemon {
 public:
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const v1::TrainerConfig& config) {
    if (config.job() == "fail-to-start") return absl::InternalError("cannot start: the job's name says so");
    auto daemon = std::make_unique<TestDaemon>(config);
    auto server = RpcServer::Start(
        {.address = config.local_socket(), .services = {&daemon->service_}, .config_key = "local_socket"});
    if (!server.ok()) return server.status();
    daemon->server_ = *std::move(server);
    return daemon;
  }

  explicit TestDaemon(const v1::TrainerConfig& config)
      : service_(config.job()),
        broken_(config.job() == "broken" || config.job() == "wedged"),
        hang_(config.job() == "hang" || config.job() == "wedged") {}

  void Stop(absl::Duration grace) override {
    std::cerr << "stopping within " << grace << std::endl;
    while (hang_) pause();
    server_->Shutdown(absl::Milliseconds(10));
  }
  std::string Banner() const override { return "listening on " + server_->address(); }
  absl::Status Health() const override {
    return broken_ ? absl::InternalError("a communicator could not be ended") : absl::OkStatus();
  }

 private:
  StatusService service_;
  const bool broken_;
  const bool hang_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace
}  // namespace wsync

int main(int argc, char** argv) {
  wsync::v1::TrainerConfig config;
  return wsync::RunDaemon(argc, argv,
                          {.name = "wsync-test",
                           .component = "test",
                           .description = "A daemon for tests.",
                           .examples = "  wsync-test --job grpo\n",
                           .config = &config,
                           .start = [&config] { return wsync::TestDaemon::Start(config); }});
}
