// A checkpoint as wsync publishes, plans and quantizes it: the one place where its tensors get the names and shapes
// that agents and written checkpoints have, and its own wishes join the rules. So the three agree, whatever the
// checkpoint.
#ifndef WSYNC_CLIENT_CHECKPOINT_MODEL_H_
#define WSYNC_CLIENT_CHECKPOINT_MODEL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/checkpoint/checkpoint.h"
#include "server/core/plan.h"

namespace wsync {

struct Model {
  std::vector<TensorView> tensors;  // in natural order; stacked experts apart (expert_stacks.h); into the checkpoint
  std::vector<std::string> modules_to_not_convert;  // the checkpoint's own list (source_scheme.h)

  const Checkpoint* checkpoint = nullptr;  // where the tensors lie

  std::vector<Tensor> TensorList() const;  // what a trainer registers
};

// `checkpoint` must outlive it.
Model ModelOf(const Checkpoint& checkpoint);

// The plan of an agent that has these rules, when ModelOf(checkpoint) is registered with it.
// INVALID_ARGUMENT: bad rules; tensors that are quantized already in another way than those that would be now (by their
// scales, see scheme.h, or by what config.json says, see source_scheme.h).
absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const Checkpoint& checkpoint, const Model& model, RecipeRules rules,
                                                   int64_t bucket_bytes);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_MODEL_H_
