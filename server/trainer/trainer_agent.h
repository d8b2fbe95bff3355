// wsync-trainer: everything the trainer-side agent consists of, in one object.
//
//   training process ─▶ TrainerService ─▶ Registrar ─▶ Publisher ─▶ data plane ─▶ sinks
//                              │              │            │ ▲
//                              └──────▶ ControlLoop (core Coordinator) ◀──▶ CoordinatorService ◀──▶ sinks
//
// Start returns once both servers listen. Stop is bounded: grace for a running version, and a few seconds to hang up.
#ifndef WSYNC_SERVER_TRAINER_TRAINER_AGENT_H_
#define WSYNC_SERVER_TRAINER_TRAINER_AGENT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/rpc/daemon.h"
#include "wsync/v1/config.pb.h"

namespace wsync {

class TrainerAgent final : public Daemon {
 public:
  // INVALID_ARGUMENT: the recipe or the TLS section; UNAVAILABLE: a socket or port that is taken, named.
  static absl::StatusOr<std::unique_ptr<TrainerAgent>> Start(const v1::TrainerConfig& config,
                                                             std::unique_ptr<Backend> backend);
  ~TrainerAgent() override;  // Stop without grace

  // Refuses new versions, lets a running one finish within `grace`, then aborts it, tells the members, and ends all
  // threads. Idempotent.
  void Stop(absl::Duration grace) override;
  std::string Banner() const override;
  absl::Status Health() const override;  // of the backend and of the control thread

  std::string local_address() const;        // "unix:///..."
  std::string coordinator_address() const;  // "host:port", the real one

 private:
  struct Parts;
  explicit TrainerAgent(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_TRAINER_AGENT_H_
