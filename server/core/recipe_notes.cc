#include "server/core/recipe_notes.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "server/core/globs.h"
#include "server/core/module_list.h"

namespace wsync {
namespace {

void AddGlobsWithoutMatch(const Catalog& catalog, const char* rule, const std::vector<std::string>& globs,
                          std::vector<std::string>* notes) {
  const std::vector<Tensor>& tensors = catalog.tensors();
  for (const std::string& glob : globs) {
    const auto matches = [&glob](const Tensor& tensor) { return GlobMatch(glob, tensor.name); };
    if (tensors.empty() || std::any_of(tensors.begin(), tensors.end(), matches)) continue;
    notes->push_back(absl::StrCat("glob '", glob, "' in '", rule, "' matches no tensor's name; names are such as '",
                                  tensors[tensors.size() / 2].name, "'"));
  }
}

void AddModulesWithoutMatch(const Catalog& catalog, const RecipeRules& rules, std::vector<std::string>* notes) {
  const auto list = ModuleList::Create(rules.modules_to_not_convert);
  if (!list.ok()) return;  // ValidateRules says it
  std::vector<std::string> names = list->NamingNothing(catalog);
  std::erase(names, "lm_head");  // of tied embeddings
  if (names.empty()) return;
  notes->push_back(absl::StrCat(names.size(), " of the names in modules_to_not_convert are no tensor's, such as '",
                                names.front(), "': see by 'wsync plan --all' that what it means stays as it is"));
}

struct Experts {
  const Tensor* quantized = nullptr;
  const Tensor* kept = nullptr;
};

void AddMixedExperts(const std::map<std::string_view, Experts>& groups, std::vector<std::string>* notes) {
  for (const auto& [name, group] : groups) {
    if (group.quantized == nullptr || group.kept == nullptr) continue;
    notes->push_back(absl::StrCat("the experts '", std::string(name), "' are FP8 in part ('", group.kept->name,
                                  "' is not): loaders that stack experts cannot hold both; exclude or include all"));
    return;
  }
}

void AddRaggedExperts(const std::map<std::string_view, Experts>& groups, const Tensor* ragged,
                      std::vector<std::string>* notes) {
  if (ragged == nullptr || groups.empty()) return;
  notes->push_back(absl::StrCat("expert '", ragged->name, "' has ", ragged->shape[0], " x ", ragged->shape[1],
                                " elements, no multiples of ", kBlockSize,
                                ": vLLM's MoE refuses such blocks; for vLLM ", "exclude '*.experts.*'"));
}

void AddExperts(const Catalog& catalog, const RecipeRules& rules, const std::vector<RecipeChoice>& choices,
                std::vector<std::string>* notes) {
  std::map<std::string_view, Experts> groups;
  const Tensor* ragged = nullptr;
  for (size_t i = 0; i < choices.size(); ++i) {
    const Tensor& tensor = catalog.tensors()[i];
    const std::string_view name = ExpertsOf(tensor.name);
    if (name.empty() || tensor.shape.size() != 2 || !tensor.name.ends_with(".weight")) continue;
    (choices[i].recipe.fp8 ? groups[name].quantized : groups[name].kept) = &tensor;
    const bool aligned = tensor.shape[0] % kBlockSize == 0 && tensor.shape[1] % kBlockSize == 0;
    if (choices[i].recipe.fp8 && !aligned && ragged == nullptr) ragged = &tensor;
  }
  AddMixedExperts(groups, notes);
  if (rules.granularity == Granularity::kBlock) AddRaggedExperts(groups, ragged, notes);
}

}  // namespace

std::string_view ExpertsOf(std::string_view tensor) {
  constexpr std::string_view kExperts = "experts.";
  for (size_t at = tensor.find(kExperts); at != std::string_view::npos; at = tensor.find(kExperts, at + 1)) {
    if (at == 0 || tensor[at - 1] == '.') return tensor.substr(0, at + kExperts.size() - 1);
  }
  return {};
}

std::vector<std::string> RecipeNotes(const Catalog& catalog, const RecipeRules& rules,
                                     const std::vector<RecipeChoice>& choices) {
  std::vector<std::string> notes;
  AddGlobsWithoutMatch(catalog, "include", rules.include, &notes);
  AddGlobsWithoutMatch(catalog, "exclude", rules.exclude, &notes);
  AddGlobsWithoutMatch(catalog, "allow_infinities", rules.allow_infinities, &notes);
  if (!rules.fp8) return notes;
  AddModulesWithoutMatch(catalog, rules, &notes);
  AddExperts(catalog, rules, choices, &notes);
  return notes;
}

}  // namespace wsync
