#include "server/core/recipe.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "server/core/globs.h"
#include "server/core/module_list.h"
#include "server/core/tensor_names.h"

namespace wsync {
namespace {

bool MatchesAny(const std::vector<std::string>& globs, std::string_view name) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) { return GlobMatch(glob, name); });
}

std::string_view KeptByShape(const Tensor& tensor) {
  switch (tensor.shape.size()) {
    case 0:
      return "scalar";
    case 1:
      return "1-D";
    case 2:
      return {};
    default:
      return "3-D or more";  // stacked experts and convolutions: no single matrix to lay blocks over
  }
}

class Chooser {
 public:
  Chooser(const Catalog& catalog, const RecipeRules& rules)
      : catalog_(catalog), rules_(rules), modules_(*ModuleList::Create(rules.modules_to_not_convert)) {
    for (const Tensor& tensor : catalog.tensors()) LookAt(tensor);
  }

  RecipeChoice Choose(const Tensor& tensor) {
    const Recipe fp8{true, rules_.granularity, rules_.scale_format, rules_.preset};
    if (const std::string_view why = KeptAlways(tensor); !why.empty()) return {Recipe{}, why};
    if (MatchesAny(rules_.exclude, tensor.name)) return {Recipe{}, "excluded by a rule"};
    if (MatchesAny(rules_.include, tensor.name)) {
      if (tensor.shape.size() == 2) return {fp8, "included by a rule"};
      return {Recipe{}, "included by a rule, but not 2-D"};
    }
    SplitName(tensor.name, &parts_);
    const LayerPlace place = LayerPlaceOf(tensor.name, parts_);
    if (const std::string_view why = KeptByName(parts_, place); !why.empty()) return {Recipe{}, why};
    if (const std::string_view why = KeptByShape(tensor); !why.empty()) return {Recipe{}, why};
    if (parts_.size() < 2 || parts_.back() != "weight") return {Recipe{}, "not a .weight"};
    if (const std::string_view why = KeptByModel(tensor); !why.empty()) return {Recipe{}, why};
    if (modules_.Matches(tensor.name)) return {Recipe{}, "in modules_to_not_convert"};
    if (const std::string_view why = KeptByLayer(place); !why.empty()) return {Recipe{}, why};
    return {fp8, "linear weight"};
  }

 private:
  using Layer = std::pair<std::string_view, int64_t>;  // stack and index

  // Learns what a model is from all of its tensors, before any is judged.
  void LookAt(const Tensor& tensor) {
    SplitName(tensor.name, &parts_);
    composite_ = composite_ || IsOfLanguageModel(parts_);
    transposed_ = transposed_ || IsTransposedWeight(tensor);
    const LayerPlace place = LayerPlaceOf(tensor.name, parts_);
    if (place.index < 0) return;
    if (IsMtp(parts_)) {
      mtp_layers_.insert(Layer(place.stack, place.index));
      return;
    }
    int64_t& highest = highest_.try_emplace(place.stack, -1).first->second;
    highest = std::max(highest, place.index);
  }

  // What no include rule can change.
  std::string_view KeptAlways(const Tensor& tensor) const {
    if (!rules_.fp8) return "FP8 is off";
    if (IsFp8(tensor.dtype)) return "already FP8";
    if (!IsQuantizable(tensor.dtype)) return "not BF16, F16 or F32";
    if (IsScaleOfQuantized(tensor.name)) return "scale of a quantized weight";
    if (BytesOf(tensor) == 0) return "empty";
    return {};
  }

  // `X.weight_scale_inv`, `X.weight_scale`, `X.input_scale`, ... beside an `X.weight` of a quantized dtype.
  bool IsScaleOfQuantized(std::string_view name) const {
    const size_t dot = name.rfind('.');
    if (dot == std::string_view::npos || name.find("scale", dot) == std::string_view::npos) return false;
    const Tensor* weight = Find(name.substr(0, dot), ".weight");
    return weight != nullptr && !IsQuantizable(weight->dtype);
  }

  // GPT-2's Conv1D has its weights as [in, out]. Its wide MLP shows that: the bias has an element per output.
  bool IsTransposedWeight(const Tensor& tensor) const {
    if (!tensor.name.ends_with(".mlp.c_fc.weight") || tensor.shape.size() != 2) return false;
    const Tensor* bias = Find(std::string_view(tensor.name).substr(0, tensor.name.size() - 7), ".bias");
    return bias != nullptr && tensor.shape[0] != tensor.shape[1] &&
           bias->shape == std::vector<int64_t>{tensor.shape[1]};
  }

  // What the tensors around a weight say of it.
  std::string_view KeptByModel(const Tensor& tensor) const {
    const std::string_view name = tensor.name;
    const std::string_view module = parts_[parts_.size() - 2];
    const std::string_view around = name.substr(0, static_cast<size_t>(module.data() - name.data()));  // "a.b."
    if (composite_ && !IsOfLanguageModel(parts_) && !IsMtp(parts_)) return "beside the language model";
    if (transposed_ && module.starts_with("c_")) return "transposed weight (Conv1D)";
    if (module == "out_proj" && Find(around, "in_proj_weight") != nullptr) return "part of nn.MultiheadAttention";
    const bool mixer = module.ends_with("_proj") && Find(around, "A_log") != nullptr;
    if (mixer && Find(around, "x_proj.weight") != nullptr) return "Mamba-1 mixer";  // vLLM's has no quantized form
    const bool cut_in_a_block = rules_.granularity == Granularity::kBlock && tensor.shape[0] % kBlockSize != 0;
    if (mixer && module == "in_proj" && cut_in_a_block) return "fused projection, no multiple of 128";
    return {};
  }

  std::string_view KeptByLayer(const LayerPlace& place) const {
    if (place.index < 0 || mtp_layers_.contains(Layer(place.stack, place.index))) return {};
    if (place.index < rules_.first_layers_bf16) return "in the first layers";
    if (rules_.last_layers_bf16 == 0) return {};
    int64_t last = highest_.at(place.stack);
    while (mtp_layers_.contains(Layer(place.stack, last))) --last;
    return place.index > last - rules_.last_layers_bf16 ? "in the last layers" : std::string_view();
  }

  const Tensor* Find(std::string_view front, std::string_view back) const {
    const int64_t found = catalog_.Find(absl::StrCat(std::string(front), std::string(back)));
    return found < 0 ? nullptr : &catalog_.tensors()[found];
  }

  const Catalog& catalog_;
  const RecipeRules& rules_;
  const ModuleList modules_;
  bool composite_ = false;   // has a `language_model`, so that towers and projectors stand beside it
  bool transposed_ = false;  // is made of Conv1D
  absl::flat_hash_map<std::string_view, int64_t> highest_;  // layer of each stack, those for MTP among them
  absl::flat_hash_set<Layer> mtp_layers_;
  NameParts parts_;  // of the tensor at hand; kept to spare an allocation per tensor
};

absl::Status CheckGlobs(const std::string& rule, const std::vector<std::string>& globs) {
  for (const std::string& glob : globs) {
    if (glob.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("recipe: an empty glob in '", rule, "' would match nothing"));
    }
    if (const size_t open = UnclosedSet(glob); open != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("recipe: glob '", glob, "' in '", rule,
                                                     "' opens a '[' at position ", open, " that no ']' closes"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckEnums(const RecipeRules& rules) {
  const auto within = [](auto value, auto first, auto last) { return first <= value && value <= last; };
  if (within(rules.granularity, Granularity::kBlock, Granularity::kTensor) &&
      within(rules.scale_format, ScaleFormat::kFp32, ScaleFormat::kPow2) &&
      within(rules.preset, Preset::kDefault, Preset::kVerl)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("recipe: unknown granularity, scale format or preset (numbers ", static_cast<int>(rules.granularity),
                   ", ", static_cast<int>(rules.scale_format), ", ", static_cast<int>(rules.preset), ")"));
}

}  // namespace

absl::Status ValidateRules(const RecipeRules& rules) {
  if (absl::Status status = CheckEnums(rules); !status.ok()) return status;
  if (absl::Status status = CheckGlobs("include", rules.include); !status.ok()) return status;
  if (absl::Status status = CheckGlobs("exclude", rules.exclude); !status.ok()) return status;
  if (absl::Status status = CheckGlobs("allow_infinities", rules.allow_infinities); !status.ok()) return status;
  if (absl::Status status = ModuleList::Create(rules.modules_to_not_convert).status(); !status.ok()) return status;
  if (rules.first_layers_bf16 < 0 || rules.last_layers_bf16 < 0) {
    return absl::InvalidArgumentError(absl::StrCat("recipe: 'first_layers_bf16' (", rules.first_layers_bf16,
                                                   ") and 'last_layers_bf16' (", rules.last_layers_bf16,
                                                   ") count layers and cannot be negative"));
  }
  return absl::OkStatus();
}

std::vector<RecipeChoice> ChooseRecipes(const Catalog& catalog, const RecipeRules& rules) {
  Chooser chooser(catalog, rules);
  std::vector<RecipeChoice> choices;
  choices.reserve(catalog.tensors().size());
  for (const Tensor& tensor : catalog.tensors()) {
    Recipe& recipe = choices.emplace_back(chooser.Choose(tensor)).recipe;
    recipe.allow_infinities = !recipe.fp8 && MatchesAny(rules.allow_infinities, tensor.name);
  }
  return choices;
}

std::string ScaleName(std::string_view name, Granularity granularity) {
  return std::string(name) + (granularity == Granularity::kBlock ? "_scale_inv" : "_scale");
}

}  // namespace wsync
