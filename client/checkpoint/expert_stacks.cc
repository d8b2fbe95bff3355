#include "client/checkpoint/expert_stacks.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/checkpoint/natural_order.h"

namespace wsync {
namespace {

// Families that transformers loads from `mlp.experts.<e>.{gate,up,down}_proj.weight`, and vLLM, too.
constexpr std::string_view kFamilies[] = {
    "afmoe",     "deepseek_v2", "deepseek_v3",   "deepseek_v32",     "dots1",       "ernie4_5_moe",   "exaone_moe",
    "flex_olmo", "glm4_moe",    "glm4_moe_lite", "glm4v_moe",        "glm_moe_dsa", "hunyuan_v1_moe", "mimo_v2_flash",
    "olmoe",     "qwen2_moe",   "qwen3_5_moe",   "qwen3_5_moe_text", "qwen3_moe",   "qwen3_next",     "solar_open"};
constexpr absl::string_view kGateUp = ".mlp.experts.gate_up_proj";
constexpr absl::string_view kDown = ".mlp.experts.down_proj";

struct ExpertSizes {
  int64_t experts = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
};

int64_t FirstOf(const OrderedJson& config, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto found = config.find(key);
    if (found != config.end() && found->is_number_integer()) return found->get<int64_t>();
  }
  return 0;
}

// What `config` and its sub-configs say.
void Look(const OrderedJson& config, int depth, bool* known_family, std::vector<ExpertSizes>* sizes) {
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string()) {
    const std::string& family = type->get_ref<const std::string&>();
    *known_family =
        *known_family || std::find(std::begin(kFamilies), std::end(kFamilies), family) != std::end(kFamilies);
  }
  sizes->push_back({FirstOf(config, {"num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"}),
                    FirstOf(config, {"hidden_size"}), FirstOf(config, {"moe_intermediate_size", "intermediate_size"})});
  if (depth == 0) return;
  for (const auto& [key, value] : config.items()) {
    if (value.is_object()) Look(value, depth - 1, known_family, sizes);
  }
}

// The projections that a stack holds, in the order of its rows; empty if it is none whose layout is known.
std::vector<std::string> ProjectionsOf(const Tensor& tensor, const std::vector<ExpertSizes>& sizes) {
  const auto matches = [&](int64_t ExpertSizes::*rows, int64_t times, int64_t ExpertSizes::*cols) {
    return std::any_of(sizes.begin(), sizes.end(), [&](const ExpertSizes& s) {
      return s.experts > 0 && tensor.shape == std::vector<int64_t>{s.experts, s.*rows * times, s.*cols};
    });
  };
  if (tensor.shape.size() != 3 || !IsQuantizable(tensor.dtype)) return {};
  if (absl::EndsWith(tensor.name, kGateUp) && matches(&ExpertSizes::intermediate, 2, &ExpertSizes::hidden)) {
    return {"gate_proj", "up_proj"};
  }
  if (absl::EndsWith(tensor.name, kDown) && matches(&ExpertSizes::hidden, 1, &ExpertSizes::intermediate)) {
    return {"down_proj"};
  }
  return {};
}

std::string ModuleOf(const Tensor& stack) { return stack.name.substr(0, stack.name.rfind('.')); }

std::vector<TensorView> Slices(const TensorView& stack, const std::vector<std::string>& projections) {
  const int64_t parts = static_cast<int64_t>(projections.size());
  const int64_t rows = stack.tensor.shape[1] / parts, cols = stack.tensor.shape[2];
  const int64_t bytes = rows * cols * DtypeBytes(stack.tensor.dtype);
  const std::string experts = ModuleOf(stack.tensor);
  std::vector<TensorView> slices;
  for (int64_t i = 0; i < stack.tensor.shape[0] * parts; ++i) {
    const std::string name = absl::StrCat(experts, ".", i / parts, ".", projections[i % parts], ".weight");
    slices.push_back({{name, stack.tensor.dtype, {rows, cols}}, stack.data + i * bytes, bytes});
  }
  return slices;
}

}  // namespace

std::vector<TensorView> UnstackExperts(std::vector<TensorView> tensors, const std::optional<OrderedJson>& config) {
  bool known_family = false;
  std::vector<ExpertSizes> sizes;
  if (config.has_value()) Look(*config, 2, &known_family, &sizes);
  if (!known_family) return tensors;
  std::map<std::string, std::vector<TensorView>> apart;  // by the stacks' module
  absl::flat_hash_map<std::string, int> stacks;          // of each module, that can be told apart
  absl::flat_hash_set<std::string> names;
  for (const TensorView& view : tensors) {
    names.insert(view.tensor.name);
    const std::vector<std::string> projections = ProjectionsOf(view.tensor, sizes);
    if (projections.empty()) continue;
    std::vector<TensorView>& slices = apart[ModuleOf(view.tensor)];
    for (TensorView& slice : Slices(view, projections)) slices.push_back(std::move(slice));
    ++stacks[ModuleOf(view.tensor)];
  }
  // One stack alone, or experts that have their names already: not what is known.
  std::erase_if(apart, [&](const auto& module) {
    return stacks[module.first] != 2 || std::any_of(module.second.begin(), module.second.end(),
                                                    [&](const TensorView& s) { return names.contains(s.tensor.name); });
  });
  if (apart.empty()) return tensors;
  std::erase_if(tensors, [&](const TensorView& view) {
    return !ProjectionsOf(view.tensor, sizes).empty() && apart.contains(ModuleOf(view.tensor));
  });
  for (auto& [module, slices] : apart) tensors.insert(tensors.end(), slices.begin(), slices.end());
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorView& a, const TensorView& b) { return NaturalLess(a.tensor.name, b.tensor.name); });
  return tensors;
}

}  // namespace wsync
