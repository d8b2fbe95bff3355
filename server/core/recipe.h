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

// What the user may say. Globs match full tensor names: '*' any run of characters (dots too), '?' one, '[a-z]' a set.
struct RecipeRules {
  bool fp8 = true;                      // false: everything raw
  Granularity granularity = Granularity::kBlock;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  Preset preset = Preset::kDefault;
  std::vector<std::string> include;     // force these 2-D tensors to FP8 even where the built-in rules say no
  std::vector<std::string> exclude;     // keep these as they are; wins over include
  int32_t first_layers_bf16 = 0;        // the first n of `*.layers.<i>.*` stay as they are
  int32_t last_layers_bf16 = 0;         // and the last n, counted from the highest layer index in the catalog
  std::vector<std::string> modules_to_not_convert;  // a checkpoint's own list: module prefixes, or "re:"-less substrings
                                                    // as transformers matches them
  bool operator==(const RecipeRules&) const = default;
};

// INVALID_ARGUMENT naming the rule: malformed glob, negative layer count.
absl::Status ValidateRules(const RecipeRules& rules);

// Why a tensor is encoded as it is: shown by `wsync plan`.
struct RecipeChoice {
  Recipe recipe;
  std::string_view reason;  // static text: "linear weight", "embedding", "norm", "router", "1-D", "already FP8", ...
};

// One choice per catalog tensor, in order. Built-in rules, DESIGN §5: 2-D quantizable `.weight` of linear layers, but
// not embeddings, lm_head, norms, routers (`mlp.gate.weight`, `*.router.*`, `block_sparse_moe.gate`), biases,
// `e_score_correction_bias`, `eh_proj`, anything not 2-D; an FP8 weight passes through raw, and so do its scales.
// MLA projections and shared experts are quantized.
std::vector<RecipeChoice> ChooseRecipes(const Catalog& catalog, const RecipeRules& rules);

// Name of the scale tensor that goes with weight `name`: X.weight -> X.weight_scale_inv (block) or X.weight_scale.
std::string ScaleName(std::string_view name, Granularity granularity);

// Shell-style match as RecipeRules describes; linear time.
bool GlobMatch(std::string_view glob, std::string_view text);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_RECIPE_H_
