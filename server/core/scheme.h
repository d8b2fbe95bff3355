// One checkpoint is quantized in one way: its config.json can describe no more, and loaders believe it. Pure.
#ifndef WSYNC_SERVER_CORE_SCHEME_H_
#define WSYNC_SERVER_CORE_SCHEME_H_

#include <vector>

#include "absl/status/status.h"
#include "server/core/catalog.h"
#include "server/core/recipe.h"

namespace wsync {

// INVALID_ARGUMENT naming both and what to do, if `choices` (ChooseRecipes' for these) makes FP8 of any tensor while
// others are quantized already in another way than `rules` ask for: codes that are no F8_E4M3 `.weight` (packed INT4,
// MXFP4, ...), or scales of another kind or shape, or none. OK where nothing is quantized, or nothing was.
absl::Status CheckOneScheme(const Catalog& catalog, const RecipeRules& rules, const std::vector<RecipeChoice>& choices);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_SCHEME_H_
