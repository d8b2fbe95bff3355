#include "server/core/scheme.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

namespace wsync {
namespace {

std::string_view ModuleOf(std::string_view name) {
  const size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
}

std::string_view LeafOf(std::string_view name) { return name.substr(name.rfind('.') + 1); }

bool NamesScale(std::string_view name) { return LeafOf(name).find("scale") != std::string_view::npos; }

// Modules that have a scale, with one of them.
using Scales = absl::flat_hash_map<std::string_view, const Tensor*>;

Scales ScalesOf(const Catalog& catalog) {
  Scales scales;
  for (const Tensor& tensor : catalog.tensors()) {
    if (NamesScale(tensor.name)) scales.try_emplace(ModuleOf(tensor.name), &tensor);
  }
  return scales;
}

// FP8 is always a code. Integers that codes are packed in are so where a scale is beside them; elsewhere they are masks
// or counters, as 64-bit ones are everywhere (Swin has its index table beside a `logit_scale`).
bool HoldsCodes(const Tensor& tensor, const Scales& scales) {
  if (NamesScale(tensor.name) || tensor.shape.size() < 2) return false;
  if (IsFp8(tensor.dtype)) return true;
  const bool packed = tensor.dtype == Dtype::kU8 || tensor.dtype == Dtype::kI8 || tensor.dtype == Dtype::kI32 ||
                      tensor.dtype == Dtype::kU32;
  return packed && scales.contains(ModuleOf(tensor.name));
}

std::vector<int64_t> ScaleShape(const Tensor& weight, Granularity granularity) {
  const int64_t rows = weight.shape[0], cols = weight.shape[1];
  if (granularity == Granularity::kTensor) return {1};
  return {ScaleRows(granularity, rows), ScaleCols(granularity, cols)};
}

bool IsAsAsked(const Catalog& catalog, const Tensor& weight, Granularity granularity) {
  if (weight.dtype != Dtype::kF8E4M3 || LeafOf(weight.name) != "weight" || weight.shape.size() != 2) return false;
  const int64_t found = catalog.Find(ScaleName(weight.name, granularity));
  if (found < 0) return false;
  const Tensor& scale = catalog.tensors()[found];
  const bool one_scalar = granularity == Granularity::kTensor && scale.shape.empty();
  return IsQuantizable(scale.dtype) && (one_scalar || scale.shape == ScaleShape(weight, granularity));
}

std::string Described(const Tensor& tensor, const Scales& scales) {
  const auto scale = scales.find(ModuleOf(tensor.name));
  std::string text = absl::StrCat("'", tensor.name, "' is quantized already: ", std::string(DtypeName(tensor.dtype)));
  if (scale == scales.end()) return absl::StrCat(text, " without scales");
  return absl::StrCat(text, " with '", std::string(LeafOf(scale->second->name)), "' [",
                      absl::StrJoin(scale->second->shape, ", "), "] ", std::string(DtypeName(scale->second->dtype)));
}

const char* Described(Granularity granularity) {
  switch (granularity) {
    case Granularity::kChannel:
      return "FP8 with a scale per channel";
    case Granularity::kTensor:
      return "FP8 with a scale per tensor";
    default:
      return "FP8 with a scale per 128x128 block";
  }
}

}  // namespace

absl::Status CheckOneScheme(const Catalog& catalog, const RecipeRules& rules,
                            const std::vector<RecipeChoice>& choices) {
  const auto first = std::find_if(choices.begin(), choices.end(), [](const RecipeChoice& c) { return c.recipe.fp8; });
  if (first == choices.end()) return absl::OkStatus();
  const Tensor& quantized_now = catalog.tensors()[first - choices.begin()];
  const Scales scales = ScalesOf(catalog);
  for (const Tensor& tensor : catalog.tensors()) {
    if (!HoldsCodes(tensor, scales) || IsAsAsked(catalog, tensor, rules.granularity)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "recipe: tensor ", Described(tensor, scales), "; the rules would make others, such as '", quantized_now.name,
        "', ", Described(rules.granularity), ", and no config.json describes both. Move all as they are (recipe.fp8: ",
        "false), exclude the others (--exclude, recipe.exclude), or start from the weights in high precision"));
  }
  return absl::OkStatus();
}

}  // namespace wsync
