#include "client/checkpoint/source_scheme.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/quantization_config.h"

namespace wsync {
namespace {

constexpr int kMaxDepth = 4;  // thinker_config.text_config.quantization_config has three
constexpr const char* kSchemeKeys[] = {"quantization_config", "compression_config"};
constexpr const char* kListKeys[] = {"modules_to_not_convert", "ignored_layers", "ignore",
                                     "exclude_modules",        "exclude",        "llm_int8_skip_modules"};

bool IsSchemeKey(const std::string& key) { return key == kSchemeKeys[0] || key == kSchemeKeys[1]; }

void Collect(const OrderedJson& config, const std::string& at, int depth, std::vector<SourceScheme>* schemes) {
  for (const auto& [key, value] : config.items()) {
    if (!value.is_object()) continue;
    if (IsSchemeKey(key)) {
      schemes->push_back({at + key, &value});
    } else if (depth < kMaxDepth) {
      Collect(value, at + key + ".", depth + 1, schemes);
    }
  }
}

void AppendNames(const OrderedJson& scheme, const char* key, std::vector<std::string>* names) {
  const auto list = scheme.find(key);
  if (list == scheme.end() || !list->is_array()) return;
  for (const OrderedJson& name : *list) {
    if (name.is_string() && !name.get_ref<const std::string&>().empty()) names->push_back(name.get<std::string>());
  }
}

void Remove(OrderedJson* config, int depth) {
  for (const char* key : kSchemeKeys) config->erase(key);
  if (depth == kMaxDepth) return;
  for (auto& [key, value] : config->items()) {
    if (value.is_object()) Remove(&value, depth + 1);
  }
}

// The first key by which `scheme` is another one than wsync writes, or null.
const char* Difference(const OrderedJson& scheme, const OrderedJson& ours) {
  for (const char* key : {"quant_method", "fmt", "weight_block_size", "format"}) {
    const auto found = scheme.find(key);
    const bool given = found != scheme.end();
    if (std::string(key) == "fmt" && !given) continue;  // e4m3 when not given
    if (ours.contains(key) && (!given || *found != ours[key])) return key;
  }
  return nullptr;
}

}  // namespace

std::vector<SourceScheme> SourceSchemes(const OrderedJson& config) {
  std::vector<SourceScheme> schemes;
  if (config.is_object()) Collect(config, "", 0, &schemes);
  return schemes;
}

std::vector<std::string> ModulesToNotConvert(const std::optional<OrderedJson>& config) {
  std::vector<std::string> names;
  if (!config.has_value()) return names;
  for (const SourceScheme& scheme : SourceSchemes(*config)) {
    for (const char* key : kListKeys) AppendNames(*scheme.value, key, &names);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

absl::Status CheckSourceSchemes(const std::optional<OrderedJson>& config, Granularity granularity,
                                const std::string& what) {
  if (!config.has_value()) return absl::OkStatus();
  const OrderedJson ours = QuantizationConfig(granularity, false, {});
  for (const SourceScheme& scheme : SourceSchemes(*config)) {
    const char* key = Difference(*scheme.value, ours);
    if (key == nullptr) continue;
    const auto found = scheme.value->find(key);
    return absl::InvalidArgumentError(absl::StrCat(
        "checkpoint '", what, "' is already quantized: its config.json says ", scheme.where, ".", key, " ",
        found == scheme.value->end() ? "not given" : found->dump(), ", and its other tensors would become ",
        ours["quant_method"].dump(), " with ", key, " ", ours[key].dump(),
        ": one config.json cannot describe both. Exclude the others (--exclude, recipe.exclude), move all as they are ",
        "(recipe.fp8: false), or start from the checkpoint in high precision"));
  }
  return absl::OkStatus();
}

absl::Status CheckSourceSchemes(const std::optional<OrderedJson>& config, const std::string& what) {
  const absl::Status block = CheckSourceSchemes(config, Granularity::kBlock, what);
  if (block.ok() || CheckSourceSchemes(config, Granularity::kChannel, what).ok()) return absl::OkStatus();
  return block;
}

OrderedJson WithoutSourceSchemes(OrderedJson config) {
  if (config.is_object()) Remove(&config, 0);
  return config;
}

}  // namespace wsync
