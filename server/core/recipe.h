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

// What the user may say. Globs match full tensor names: '*' any run of characters (dots too), '?' one, '[a-z]' a set,
// '[!a-z]' its complement. When rules disagree: exclude, then include, then the built-in rules and the lists below.
struct RecipeRules {
  bool fp8 = true;  // false: everything raw
  Granularity granularity = Granularity::kBlock;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  Preset preset = Preset::kDefault;
  std::vector<std::string> include;  // force these 2-D floating tensors to FP8, whatever the rules below say
  std::vector<std::string> exclude;  // keep these as they are
  int32_t first_layers_bf16 = 0;     // the first n of `*.layers.<i>.*` stay as they are
  int32_t last_layers_bf16 = 0;      // and the last n, counted from the highest layer index in the catalog
  // A checkpoint's own list. An entry matches where it is a run of whole components of the tensor's name:
  // "layers.1" matches "model.layers.1.mlp.up_proj.weight", not "model.layers.11.mlp.up_proj.weight".
  std::vector<std::string> modules_to_not_convert;
  // Globs: these may hold infinities (masks, clips that are not set), as far as they are moved as they are.
  std::vector<std::string> allow_infinities;
  bool operator==(const RecipeRules&) const = default;
};

// INVALID_ARGUMENT naming the rule: empty or malformed glob, empty entry or regular expression in
// modules_to_not_convert, negative layer count, unknown enum number.
absl::Status ValidateRules(const RecipeRules& rules);

// Why a tensor is encoded as it is: shown by `wsync plan`.
struct RecipeChoice {
  Recipe recipe;
  std::string_view reason;  // static text: "linear weight", "embedding", "norm", "router", "1-D", "already FP8", ...
};

// One choice per catalog tensor, in order. FP8 goes to 2-D BF16, F16 and F32 `.weight`s of linear layers: attention
// (MLA too), MLPs, experts and shared experts, vision towers. Raw stay embeddings, output heads (`lm_head`,
// `shared_head`), norms, routers (`mlp.gate`, `block_sparse_moe.gate`, `*.router.*`), biases (`e_score_correction_bias`
// too), `eh_proj`, and anything not 2-D, stacked experts and convolutions among it. A weight that is FP8 already passes
// through raw with its scales; no include rule changes that.
// REQUIRES: ValidateRules(rules).ok().
std::vector<RecipeChoice> ChooseRecipes(const Catalog& catalog, const RecipeRules& rules);

// One sentence for every include, exclude or allow_infinities glob that matches no tensor: a slip, most likely, that
// would show only as tensors encoded otherwise than was wanted.
std::vector<std::string> GlobsWithoutMatch(const Catalog& catalog, const RecipeRules& rules);

// Name of the scale tensor that goes with weight `name`: X.weight -> X.weight_scale_inv (block) or X.weight_scale
// (channel, tensor), as the ecosystem's loaders want it.
std::string ScaleName(std::string_view name, Granularity granularity);

// Shell-style match as RecipeRules describes; at most glob.size() * text.size() steps.
bool GlobMatch(std::string_view glob, std::string_view text);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_RECIPE_H_
