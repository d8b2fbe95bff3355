// wsync-rollout as an object: the controller and, before it, the local API on its socket. Can live in any process.
#ifndef WSYNC_SERVER_ROLLOUT_ROLLOUT_AGENT_H_
#define WSYNC_SERVER_ROLLOUT_ROLLOUT_AGENT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/rpc/daemon.h"
#include "wsync/v1/config.pb.h"

namespace grpc {
class ChannelCredentials;
}

namespace wsync {

class RolloutAgent final : public Daemon {
 public:
  // `config` as LoadConfig fills it. The coordinator need not be there yet; the local socket must be free.
  static absl::StatusOr<std::unique_ptr<RolloutAgent>> Start(const v1::RolloutConfig& config,
                                                             std::unique_ptr<Backend> backend,
                                                             std::shared_ptr<grpc::ChannelCredentials> credentials);
  ~RolloutAgent() override;  // Stop without grace

  void Stop(absl::Duration grace) override;
  std::string Banner() const override;
  absl::Status Health() const override;  // of the backend and of the control thread
  std::string local_address() const;     // with the real port where there is one

 private:
  struct Impl;
  explicit RolloutAgent(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_ROLLOUT_AGENT_H_
