#include "client/checkpoint/model_shapes.h"

#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace wsync {
namespace {

const std::map<std::string_view, ModelFacts>& Models() {
  static const auto* const models = new std::map<std::string_view, ModelFacts>{
      {"qwen2.5-0.5b",
       {.hf_model_type = "qwen2",
        .architecture = "Qwen2ForCausalLM",
        .hidden = 896,
        .intermediate = 4864,
        .layers = 24,
        .heads = 14,
        .kv_heads = 2,
        .head_dim = 64,
        .vocab = 151936,
        .tied = true,
        .qkv_bias = true}},
      {"qwen2.5-7b",
       {.hf_model_type = "qwen2",
        .architecture = "Qwen2ForCausalLM",
        .hidden = 3584,
        .intermediate = 18944,
        .layers = 28,
        .heads = 28,
        .kv_heads = 4,
        .head_dim = 128,
        .vocab = 152064,
        .qkv_bias = true}},
      {"qwen3-8b",
       {.hf_model_type = "qwen3",
        .architecture = "Qwen3ForCausalLM",
        .hidden = 4096,
        .intermediate = 12288,
        .layers = 36,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 128,
        .vocab = 151936,
        .qk_norm = true}},
      {"qwen3-30b-a3b",
       {.hf_model_type = "qwen3_moe",
        .architecture = "Qwen3MoeForCausalLM",
        .hidden = 2048,
        .moe_intermediate = 768,
        .layers = 48,
        .heads = 32,
        .kv_heads = 4,
        .head_dim = 128,
        .experts = 128,
        .experts_per_token = 8,
        .vocab = 151936,
        .qk_norm = true}},
      {"deepseek-v3",
       {.hf_model_type = "deepseek_v3",
        .architecture = "DeepseekV3ForCausalLM",
        .hidden = 7168,
        .intermediate = 18432,
        .moe_intermediate = 2048,
        .layers = 61,
        .heads = 128,
        .kv_heads = 128,
        .head_dim = 128,
        .experts = 256,
        .experts_per_token = 8,
        .shared_experts = 1,
        .dense_layers = 3,
        .vocab = 129280,
        .q_lora_rank = 1536,
        .kv_lora_rank = 512,
        .qk_nope_head_dim = 128,
        .qk_rope_head_dim = 64}},
  };
  return *models;
}

class Lister {
 public:
  explicit Lister(const ModelFacts& facts) : facts_(facts) {}

  std::vector<Tensor> List() && {
    Matrix("model.embed_tokens", facts_.vocab, facts_.hidden);
    for (int64_t layer = 0; layer < facts_.layers; ++layer) Layer(layer);
    Vector("model.norm.weight", facts_.hidden);
    if (!facts_.tied) Matrix("lm_head", facts_.vocab, facts_.hidden);
    return std::move(tensors_);
  }

 private:
  void Matrix(const std::string& module, int64_t rows, int64_t cols) {
    tensors_.push_back({absl::StrCat(module, ".weight"), Dtype::kBF16, {rows, cols}});
  }
  void Vector(std::string name, int64_t size, Dtype dtype = Dtype::kBF16) {
    tensors_.push_back({std::move(name), dtype, {size}});
  }

  void Layer(int64_t layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    if (facts_.q_lora_rank > 0) {
      LatentAttention(prefix + "self_attn.");
    } else {
      Attention(prefix + "self_attn.");
    }
    if (facts_.experts > 0 && layer >= facts_.dense_layers) {
      Experts(prefix + "mlp.");
    } else {
      Mlp(prefix + "mlp.", facts_.intermediate);
    }
    Vector(prefix + "input_layernorm.weight", facts_.hidden);
    Vector(prefix + "post_attention_layernorm.weight", facts_.hidden);
  }

  void Attention(const std::string& prefix) {
    Projection(prefix + "q_proj", facts_.heads * facts_.head_dim);
    Projection(prefix + "k_proj", facts_.kv_heads * facts_.head_dim);
    Projection(prefix + "v_proj", facts_.kv_heads * facts_.head_dim);
    Matrix(prefix + "o_proj", facts_.hidden, facts_.heads * facts_.head_dim);
    if (!facts_.qk_norm) return;
    Vector(prefix + "q_norm.weight", facts_.head_dim);
    Vector(prefix + "k_norm.weight", facts_.head_dim);
  }

  void Projection(const std::string& module, int64_t rows) {
    Matrix(module, rows, facts_.hidden);
    if (facts_.qkv_bias) Vector(module + ".bias", rows);
  }

  void LatentAttention(const std::string& prefix) {
    Matrix(prefix + "q_a_proj", facts_.q_lora_rank, facts_.hidden);
    Vector(prefix + "q_a_layernorm.weight", facts_.q_lora_rank);
    Matrix(prefix + "q_b_proj", facts_.heads * (facts_.qk_nope_head_dim + facts_.qk_rope_head_dim), facts_.q_lora_rank);
    Matrix(prefix + "kv_a_proj_with_mqa", facts_.kv_lora_rank + facts_.qk_rope_head_dim, facts_.hidden);
    Vector(prefix + "kv_a_layernorm.weight", facts_.kv_lora_rank);
    Matrix(prefix + "kv_b_proj", facts_.heads * (facts_.qk_nope_head_dim + facts_.head_dim), facts_.kv_lora_rank);
    Matrix(prefix + "o_proj", facts_.hidden, facts_.heads * facts_.head_dim);
  }

  void Mlp(const std::string& prefix, int64_t intermediate) {
    Matrix(prefix + "gate_proj", intermediate, facts_.hidden);
    Matrix(prefix + "up_proj", intermediate, facts_.hidden);
    Matrix(prefix + "down_proj", facts_.hidden, intermediate);
  }

  void Experts(const std::string& prefix) {
    Matrix(prefix + "gate", facts_.experts, facts_.hidden);
    if (facts_.hf_model_type == "deepseek_v3") {
      Vector(prefix + "gate.e_score_correction_bias", facts_.experts, Dtype::kF32);
    }
    for (int64_t expert = 0; expert < facts_.experts; ++expert) {
      Mlp(absl::StrCat(prefix, "experts.", expert, "."), facts_.moe_intermediate);
    }
    if (facts_.shared_experts > 0) Mlp(prefix + "shared_experts.", facts_.shared_experts * facts_.moe_intermediate);
  }

  const ModelFacts& facts_;
  std::vector<Tensor> tensors_;
};

}  // namespace

std::vector<std::string> KnownModels() {
  std::vector<std::string> names;
  for (const auto& [name, facts] : Models()) names.emplace_back(name);
  return names;
}

absl::StatusOr<ModelFacts> FactsOf(std::string_view model) {
  const auto it = Models().find(model);
  if (it != Models().end()) return it->second;
  return absl::NotFoundError(absl::StrCat("model shapes: '", std::string(model), "' is not a known model; known are ",
                                          absl::StrJoin(KnownModels(), ", ")));
}

absl::StatusOr<std::vector<Tensor>> ModelTensors(std::string_view model) {
  const absl::StatusOr<ModelFacts> facts = FactsOf(model);
  if (!facts.ok()) return facts.status();
  return Lister(*facts).List();
}

}  // namespace wsync
