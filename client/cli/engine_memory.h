// What stands in for an inference engine where there is none: shared memory with room for every output tensor, and the
// engine's half of the update protocol. Used by export, demo and bench, through the public local API only.
#ifndef WSYNC_CLIENT_CLI_ENGINE_MEMORY_H_
#define WSYNC_CLIENT_CLI_ENGINE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/local/engine_client.h"
#include "client/local/shared_segment.h"

namespace wsync::cli {

class EngineMemory {
 public:
  static absl::StatusOr<std::unique_ptr<EngineMemory>> Create(const EngineOutputs& outputs);

  MemoryHandle handle() const { return segment_->handle(); }
  std::vector<Destination> Destinations() const;  // every output whole
  const std::byte* Data(size_t output) const { return segment_->data() + offsets_[output]; }
  int64_t bytes() const { return segment_->bytes(); }

 private:
  EngineMemory() = default;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> offsets_;
  std::unique_ptr<SharedSegment> segment_;
};

// The version that an event asks the engine to pause for; nullopt: it asks for no pause.
std::optional<uint64_t> AsksToPause(const v1::UpdateEvent& event);

// Answers prepare and apply at once (nothing here decodes) until a version >= `at_least` is applied.
// DEADLINE_EXCEEDED says what did not come.
absl::StatusOr<v1::AppliedUpdate> WaitForApplied(EngineClient& engine, uint64_t at_least, absl::Duration timeout);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_ENGINE_MEMORY_H_
