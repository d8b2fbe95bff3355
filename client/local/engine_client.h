// The inference engine's side of the rollout agent's local API: attach destinations, then follow updates.
//
// Blocking calls. Updates are read on a thread of its own ("wsync-updates"), which also answers the agent's keepalive
// pings while the caller is busy with other things: an engine may take its time between two events. Cancel() may come
// from any thread and makes Next() return.
#ifndef WSYNC_CLIENT_LOCAL_ENGINE_CLIENT_H_
#define WSYNC_CLIENT_LOCAL_ENGINE_CLIENT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/backend/memory.h"
#include "server/core/destinations.h"
#include "server/core/plan.h"
#include "wsync/v1/rollout.pb.h"

namespace wsync {

struct EngineOutput {
  Tensor tensor;
  bool is_scale = false;
  bool quantized = false;
};
struct EngineOutputs {
  std::vector<EngineOutput> outputs;
  RecipeRules rules;
  int64_t payload_bytes = 0;
};

class EngineClient {
 public:
  static absl::StatusOr<std::unique_ptr<EngineClient>> Connect(const std::string& socket, absl::Duration timeout);
  ~EngineClient();

  // What the plan gives; waits for a trainer to register until `timeout`.
  absl::StatusOr<EngineOutputs> GetOutputs(absl::Duration timeout);
  // Attaches and opens the update stream. `layer_window`: see AttachHeader.
  absl::StatusOr<v1::AttachReply> Attach(const std::string& engine, const std::vector<MemoryHandle>& handles,
                                         const std::vector<Destination>& destinations, bool allow_partial,
                                         absl::Duration timeout, uint32_t layer_window = 0);
  // The next event; blocks. An error means that the agent let go of us (or Cancel was called).
  absl::StatusOr<v1::UpdateEvent> Next();
  // The answer to Apply, and to Prepare with in_place: our weights are not being read.
  absl::Status Paused(uint64_t version);
  // The answers to LayerWanted, by its ticket.
  absl::Status ProvideLayer(uint64_t ticket, const std::vector<MemoryHandle>& handles,
                            const std::vector<Destination>& destinations);
  absl::Status LayerTaken(uint64_t ticket);
  absl::Status LayerRefused(uint64_t ticket, const std::string& reason);
  absl::Status Detach();
  void Cancel();

 private:
  struct Impl;
  explicit EngineClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// One destination for a whole output tensor, contiguous at `offset_bytes` of `handle`.
Destination WholeTensor(const Tensor& output, int32_t handle, int64_t offset_bytes);

}  // namespace wsync

#endif  // WSYNC_CLIENT_LOCAL_ENGINE_CLIENT_H_
