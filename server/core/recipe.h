// Which tensors become FP8, how, and why the others do not. A pure function of (catalog, rules).
#ifndef WSYNC_SERVER_CORE_RECIPE_H_
#define WSYNC_SERVER_CORE_RECIPE_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/format.h"
#include "server/core/catalog.h"

namespace wsync {

// What the user may say. Globs (globs.h) match full tensor names. When rules disagree: exclude, then include, then the
// built-in rules and the lists below.
struct RecipeRules {
  bool fp8 = true;  // false: everything raw
  Granularity granularity = Granularity::kBlock;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  Preset preset = Preset::kDefault;
  std::vector<std::string> include;  // force these 2-D floating tensors to FP8, whatever the rules below say
  std::vector<std::string> exclude;  // keep these as they are
  // The first n layers of every stack (`model.layers`, `encoder.block`, ...) stay as they are, and the last n, counted
  // from the stack's highest index in the catalog. Layers for MTP are neither: they stand behind the model's own.
  int32_t first_layers_bf16 = 0;
  int32_t last_layers_bf16 = 0;
  std::vector<std::string> modules_to_not_convert;  // a checkpoint's own list: see module_list.h
  // Globs: these may hold infinities (masks, clips that are not set), as far as they are moved as they are.
  std::vector<std::string> allow_infinities;
  bool operator==(const RecipeRules&) const = default;
};

// INVALID_ARGUMENT naming the rule: empty or malformed glob, an entry of modules_to_not_convert that ModuleList
// refuses, negative layer count, unknown enum number.
absl::Status ValidateRules(const RecipeRules& rules);

// Why a tensor is encoded as it is: shown by `wsync plan`.
struct RecipeChoice {
  Recipe recipe;
  std::string_view reason;  // static text: "linear weight", "embedding", "norm", "router", "1-D", "already FP8", ...
};

// One choice per catalog tensor, in order. FP8 goes to 2-D BF16, F16 and F32 `.weight`s of linear layers: attention
// (MLA too), MLPs, experts and shared experts. Raw stay
// - what the official FP8 checkpoints of each family keep: embeddings, output heads under any name, norms, routers,
//   biases, vision and audio towers with their projectors, MTP entry projections, LoRA adapters, gates of linear
//   attention (tensor_names.h), and whatever stands beside a `language_model`;
// - what engines and loaders hold unquantized: Mamba-1 mixers, `nn.MultiheadAttention`, transposed weights (Conv1D of
//   GPT-2), with 128x128 blocks Mamba-2's `in_proj` whose parts are cut within a block;
// - anything not 2-D, stacked experts and convolutions among it.
// A weight that is quantized already passes through raw with its scales; no include rule changes that.
// REQUIRES: ValidateRules(rules).ok().
std::vector<RecipeChoice> ChooseRecipes(const Catalog& catalog, const RecipeRules& rules);

// Name of the scale tensor that goes with weight `name`: X.weight -> X.weight_scale_inv (block) or X.weight_scale
// (channel, tensor), as the ecosystem's loaders want it.
std::string ScaleName(std::string_view name, Granularity granularity);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_RECIPE_H_
