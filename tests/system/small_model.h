// The model that tests of real daemons move.
#ifndef WSYNC_TESTS_SYSTEM_SMALL_MODEL_H_
#define WSYNC_TESTS_SYSTEM_SMALL_MODEL_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/catalog.h"

namespace wsync {

// Linear layers, an embedding, norms and biases: 1.5 MB of FP8 in over twenty 64 KiB buckets, odd shapes, tensors
// larger than a bucket.
inline std::vector<Tensor> SmallModel() {
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", Dtype::kBF16, {500, 96}}};
  for (int layer = 0; layer < 3; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    tensors.push_back({prefix + "self_attn.q_proj.weight", Dtype::kBF16, {256, 192}});
    tensors.push_back({prefix + "self_attn.q_proj.bias", Dtype::kBF16, {256}});
    tensors.push_back({prefix + "mlp.up_proj.weight", Dtype::kBF16, {1000, 192}});
    tensors.push_back({prefix + "mlp.down_proj.weight", Dtype::kBF16, {192, 1000}});
    tensors.push_back({prefix + "input_layernorm.weight", Dtype::kBF16, {192}});
  }
  tensors.push_back({"lm_head.weight", Dtype::kBF16, {500, 96}});
  return tensors;
}

}  // namespace wsync

#endif  // WSYNC_TESTS_SYSTEM_SMALL_MODEL_H_
