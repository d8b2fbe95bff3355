// The true tensor names and shapes of known models, made from their configurations: for plans, demos, benchmarks and
// tests without a checkpoint at hand. Pure and stateless.
#ifndef WSYNC_CLIENT_CHECKPOINT_MODEL_SHAPES_H_
#define WSYNC_CLIENT_CHECKPOINT_MODEL_SHAPES_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/catalog.h"

namespace wsync {

// A model's configuration; the fields carry the meaning, and mostly the names, that config.json gives them.
struct ModelFacts {
  std::string_view hf_model_type;  // "qwen2"
  std::string_view architecture;   // "Qwen2ForCausalLM"
  int64_t hidden = 0;
  int64_t intermediate = 0;      // of dense MLPs; 0: all layers are MoE
  int64_t moe_intermediate = 0;  // of one expert; 0: no MoE
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  // with MLA: of the values
  int64_t experts = 0;
  int64_t experts_per_token = 0;
  int64_t shared_experts = 0;
  int64_t dense_layers = 0;  // MoE models: the first layers with a dense MLP
  int64_t vocab = 0;
  bool tied = false;  // lm_head is embed_tokens, and not in the checkpoint
  bool qkv_bias = false;
  bool qk_norm = false;
  int64_t q_lora_rank = 0;  // MLA, where > 0
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
};

// "deepseek-v3", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-30b-a3b", "qwen3-8b".
std::vector<std::string> KnownModels();

// NOT_FOUND for any other name, listing the known ones.
absl::StatusOr<ModelFacts> FactsOf(std::string_view model);

// Checkpoint names, shapes and dtypes: embeddings, layer by layer, final norm, lm_head. All BF16 but for
// DeepSeek's `e_score_correction_bias` (F32). DeepSeek-V3 comes without its MTP layer.
absl::StatusOr<std::vector<Tensor>> ModelTensors(std::string_view model);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_MODEL_SHAPES_H_
