// What a user should read about a recipe before it is used: slips, and what engines will refuse. Sentences. Pure.
#ifndef WSYNC_SERVER_CORE_RECIPE_NOTES_H_
#define WSYNC_SERVER_CORE_RECIPE_NOTES_H_

#include <string>
#include <vector>

#include "server/core/catalog.h"
#include "server/core/recipe.h"

namespace wsync {

// One sentence each for every include, exclude or allow_infinities glob that matches no tensor and for
// modules_to_not_convert whose names no tensor has: tensors are encoded otherwise than was wanted; for FP8 experts with
// a dimension that is no multiple of 128 (with 128x128 blocks), which vLLM's MoE refuses; and for a group of experts of
// which some are FP8 and others are not, which loaders that stack them cannot hold. `choices` is ChooseRecipes(catalog,
// rules).
std::vector<std::string> RecipeNotes(const Catalog& catalog, const RecipeRules& rules,
                                     const std::vector<RecipeChoice>& choices);

// "model.layers.3.mlp.experts" for "model.layers.3.mlp.experts.17.up_proj.weight"; "" for a tensor of no experts.
std::string_view ExpertsOf(std::string_view tensor);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_RECIPE_NOTES_H_
