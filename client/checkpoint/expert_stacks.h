// Stacked experts, told apart as their families' FP8 checkpoints and loaders have them.
//
// transformers 5 holds the experts of a layer as `mlp.experts.gate_up_proj` [E, 2I, H], gate rows then up, and
// `mlp.experts.down_proj` [E, H, I], and some families' BF16 checkpoints have them so. Their FP8 checkpoints have
// `mlp.experts.<e>.gate_proj.weight`, `up_proj`, `down_proj` instead, which are contiguous rows of the stacks. Pure.
#ifndef WSYNC_CLIENT_CHECKPOINT_EXPERT_STACKS_H_
#define WSYNC_CLIENT_CHECKPOINT_EXPERT_STACKS_H_

#include <optional>
#include <vector>

#include "client/checkpoint/safetensors.h"
#include "client/checkpoint/strict_json.h"

namespace wsync {

// `tensors` with one view per expert and projection in a stack's place, into the same memory; in natural order of
// names.
//
// Only stacks whose layout is known: of a family (`model_type`) whose loaders read experts one by one, with the sizes
// that `config` gives, in a dtype that can be quantized. All others stay as they are: transposed ones (Llama 4,
// GPT-OSS, Qwen3-VL-MoE), those of families that nobody looked at, and stacks whose experts have their names already.
std::vector<TensorView> UnstackExperts(std::vector<TensorView> tensors, const std::optional<OrderedJson>& config);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_EXPERT_STACKS_H_
