// Catalogs and plans for tests: random ones from RapidCheck, and small ones by hand.
#ifndef WSYNC_TESTS_CORE_PLAN_TESTING_H_
#define WSYNC_TESTS_CORE_PLAN_TESTING_H_

#include <rapidcheck.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/plan.h"

namespace wsync {

inline std::shared_ptr<const Catalog> MakeCatalog(std::vector<Tensor> tensors) {
  auto catalog = Catalog::Create(std::move(tensors));
  RC_ASSERT(catalog.ok());
  return std::make_shared<const Catalog>(*std::move(catalog));
}

inline std::shared_ptr<const Plan> MakePlan(std::vector<Tensor> tensors, const RecipeRules& rules,
                                            int64_t bucket_bytes) {
  auto plan = Plan::Create(MakeCatalog(std::move(tensors)), rules, bucket_bytes);
  RC_ASSERT(plan.ok());
  return *std::move(plan);
}

// In [begin, end), uniformly: RapidCheck alone would start its runs with small numbers only.
inline int64_t Uniform(int64_t begin, int64_t end) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<int64_t>(begin, end));
}

// A dimension that is often at a block edge, sometimes zero.
inline int64_t RandomDim(int64_t most) {
  switch (Uniform(0, 8)) {
    case 0:
      return *rc::gen::element<int64_t>(0, 1, 127, 128, 129, 256, 384);
    default:
      return Uniform(1, most + 1);
  }
}

inline Tensor RandomTensor(int64_t index) {
  const std::string layer = absl::StrCat("model.layers.", index, ".");
  switch (Uniform(0, 10)) {
    case 0:
      return {layer + "scalar", Dtype::kF32, {}};
    case 1:
      return {layer + "input_layernorm.weight", Dtype::kBF16, {RandomDim(50'000)}};
    case 2:
      return {layer + "experts", Dtype::kBF16, {RandomDim(4), RandomDim(200), RandomDim(40)}};
    case 3:
      return {layer + "mlp.gate.weight", Dtype::kF32, {RandomDim(1500), RandomDim(300)}};
    case 4:
      return {layer + "self_attn.q_proj.weight", Dtype::kF8E4M3, {RandomDim(1500), RandomDim(600)}};
    case 5:
      return {layer + "counter", Dtype::kI64, {RandomDim(20), RandomDim(20)}};
    default:
      break;
  }
  const Dtype dtype = *rc::gen::element(Dtype::kBF16, Dtype::kF16, Dtype::kF32);
  return {layer + "mlp.up_proj.weight", dtype, {RandomDim(1500), RandomDim(600)}};
}

inline std::vector<Tensor> RandomTensors(int64_t most = 12) {
  std::vector<Tensor> tensors(Uniform(1, most + 1));
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i] = RandomTensor(static_cast<int64_t>(i));
  return tensors;
}

inline RecipeRules RandomRules() {
  RecipeRules rules;
  rules.fp8 = Uniform(0, 6) != 0;
  rules.granularity = *rc::gen::element(Granularity::kBlock, Granularity::kChannel, Granularity::kTensor);
  return rules;
}

inline int64_t RandomBucketBytes() { return Uniform(kMinBucketBytes, 600'000); }

}  // namespace wsync

#endif  // WSYNC_TESTS_CORE_PLAN_TESTING_H_
