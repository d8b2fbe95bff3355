#include "client/checkpoint/model.h"

#include <utility>

#include "client/checkpoint/expert_stacks.h"
#include "client/checkpoint/source_scheme.h"
#include "server/core/scheme.h"

namespace wsync {

std::vector<Tensor> Model::TensorList() const {
  std::vector<Tensor> list;
  list.reserve(tensors.size());
  for (const TensorView& view : tensors) list.push_back(view.tensor);
  return list;
}

Model ModelOf(const Checkpoint& checkpoint) {
  return {UnstackExperts(checkpoint.tensors(), checkpoint.config()), ModulesToNotConvert(checkpoint.config()),
          &checkpoint};
}

absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(const Checkpoint& checkpoint, const Model& model, RecipeRules rules,
                                                   int64_t bucket_bytes) {
  auto& keep = rules.modules_to_not_convert;
  keep.insert(keep.end(), model.modules_to_not_convert.begin(), model.modules_to_not_convert.end());
  auto catalog = Catalog::Create(model.TensorList());
  if (!catalog.ok()) return catalog.status();
  auto plan = Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), rules, bucket_bytes);
  if (!plan.ok()) return plan;
  if ((*plan)->quantized_tensors() > 0) {
    const Granularity granularity = rules.granularity;
    absl::Status status = CheckSourceSchemes(checkpoint.config(), granularity, checkpoint.path());
    if (!status.ok()) return status;
  }
  absl::Status status = CheckOneScheme((*plan)->catalog(), (*plan)->rules(), (*plan)->recipes());
  if (!status.ok()) return status;
  return plan;
}

}  // namespace wsync
