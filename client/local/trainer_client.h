// The training process's side of the trainer agent's local API: register once, publish versions.
//
// Survives its agent: when the agent died and is back, the client registers the same memory again by itself, on a
// thread of its own ("wsync-client"), and a Publish that the agent's death cut off before `released` is made again.
// The memory must stay as it was lent.
//
// Blocking calls; one thread at a time, except that Publish may run on one thread while another waits. Errors are the
// agent's own texts; UNAVAILABLE when it cannot be reached says at which socket and how to start one.
#ifndef WSYNC_CLIENT_LOCAL_TRAINER_CLIENT_H_
#define WSYNC_CLIENT_LOCAL_TRAINER_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/backend/memory.h"
#include "server/core/catalog.h"
#include "wsync/v1/trainer.pb.h"

namespace wsync {

struct SourceTensor {
  Tensor tensor;
  uint32_t handle = 0;  // index into the handles given to Register
  uint64_t offset_bytes = 0;
};

// Called on the publishing thread while a version is on its way; any may be empty. When the agent restarts in between
// they begin anew.
struct PublishObserver {
  std::function<void(const v1::Accepted&)> accepted;
  std::function<void(const v1::PublishProgress&)> progress;
  std::function<void(const v1::Released&)> released;
};

struct TrainerClientOptions {
  // How long a Register or a Publish waits for an agent that went away. A dead agent must not cost the trainer more
  // than a second, and one that stands still, which is noticed after 4 s, not more than five. More is for supervisors
  // that take longer, and keeps the trainer waiting.
  absl::Duration reconnect_timeout = absl::Milliseconds(800);
};

class TrainerClient {
 public:
  // `socket` as in trainer.yaml's local_socket: "unix:///run/wsync/trainer.sock".
  static absl::StatusOr<std::unique_ptr<TrainerClient>> Connect(const std::string& socket, absl::Duration timeout,
                                                                TrainerClientOptions options = {});
  ~TrainerClient();

  absl::StatusOr<v1::RegisterReply> Register(const std::vector<MemoryHandle>& handles,
                                             const std::vector<SourceTensor>& tensors,
                                             const std::vector<std::string>& modules_to_not_convert, bool replace);
  // Returns when every replica applied the version or was given up. UNAVAILABLE also when the agent died (within a
  // second) or stood still (within five): the text has its phase and when it was last heard of. After `released` the
  // weights may have changed since, so what to send is the caller's to say.
  absl::StatusOr<v1::VersionReport> Publish(uint64_t version, const PublishObserver& observer);
  absl::Status Unregister();

 private:
  struct Impl;
  explicit TrainerClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_LOCAL_TRAINER_CLIENT_H_
