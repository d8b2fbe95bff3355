// A model's weights in shared memory, laid out for a trainer agent: what a training process has in its own memory.
#ifndef WSYNC_CLIENT_CLI_SHARED_MODEL_H_
#define WSYNC_CLIENT_CLI_SHARED_MODEL_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/checkpoint/model.h"
#include "client/local/shared_segment.h"
#include "client/local/trainer_client.h"

namespace wsync::cli {

class SharedModel {
 public:
  // Zeroed memory with room for every tensor, each aligned to 128 bytes.
  static absl::StatusOr<SharedModel> Create(const std::vector<Tensor>& tensors, const std::string& purpose);
  // The same, filled from a checkpoint's model; `progress` gets (bytes done, bytes in all).
  static absl::StatusOr<SharedModel> FromModel(const Model& model, const std::string& purpose,
                                               const std::function<void(int64_t, int64_t)>& progress);

  const std::vector<SourceTensor>& tensors() const { return tensors_; }
  std::byte* Data(size_t tensor) { return segment_->data() + tensors_[tensor].offset_bytes; }
  absl::StatusOr<v1::RegisterReply> Register(TrainerClient& client,
                                             const std::vector<std::string>& modules_to_not_convert, bool replace);

 private:
  std::vector<SourceTensor> tensors_;
  std::unique_ptr<SharedSegment> segment_;
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_SHARED_MODEL_H_
