#include "server/core/recipe.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

using Parts = std::vector<std::string_view>;  // a name's dot-separated components

void SplitInto(std::string_view name, Parts* parts) {
  parts->clear();
  for (size_t begin = 0;;) {
    const size_t dot = name.find('.', begin);
    parts->push_back(name.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    if (dot == std::string_view::npos) return;
    begin = dot + 1;
  }
}

bool MatchesAny(const std::vector<std::string>& globs, std::string_view name) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) { return GlobMatch(glob, name); });
}

bool OneOf(std::string_view text, std::initializer_list<std::string_view> choices) {
  return std::find(choices.begin(), choices.end(), text) != choices.end();
}

// The i of `layers.<i>`, or -1.
int64_t LayerOf(const Parts& parts) {
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    const std::string_view digits = parts[i + 1];
    int32_t layer = -1;
    if (parts[i] != "layers") continue;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), layer);
    if (parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size() && layer >= 0) return layer;
  }
  return -1;
}

bool IsEmbedding(std::string_view module) {
  return OneOf(module, {"wte", "wpe", "embed", "embedding", "embeddings"}) || module.starts_with("embed_") ||
         module.ends_with("_embed") || module.ends_with("_embedding") || module.ends_with("_embeddings");
}

// Value and classification heads are as sensitive as lm_head, and as small.
bool IsOutputHead(const Parts& parts) {
  const std::string_view module = parts[parts.size() - 2];
  if (module.ends_with("lm_head") || OneOf(module, {"score", "v_head", "value_head", "classifier"})) return true;
  if (parts.size() == 2 && OneOf(module, {"output", "head"})) return true;  // natively named checkpoints
  return std::find(parts.begin(), parts.end(), "shared_head") != parts.end();
}

bool IsRouter(const Parts& parts) {
  return std::any_of(parts.begin(), parts.end(), [](std::string_view part) {
    return OneOf(part, {"gate", "router", "shared_expert_gate"});
  });
}

// "norm", "q_norm", "input_layernorm", "LayerNorm", "norm1", "layer_norm_2"; not "normalizer" or "normal".
bool IsNorm(std::string_view module) {
  if (module.starts_with("ln_")) return true;
  module = module.substr(0, module.find_last_not_of("0123456789_") + 1);
  return module.ends_with("norm") || module.ends_with("Norm");
}

// Why the name alone says that this is no linear weight; empty if it may be one.
std::string_view KeptByName(const Parts& parts) {
  if (parts.back().ends_with("bias")) return "bias";
  if (parts.size() < 2) return {};
  const std::string_view module = parts[parts.size() - 2];
  if (module.ends_with("bias")) return "bias";  // relative_attention_bias: a table
  if (IsNorm(module)) return "norm";
  if (IsEmbedding(module)) return "embedding";
  if (IsOutputHead(parts)) return "output head";
  if (IsRouter(parts)) return "router";
  if (module == "eh_proj") return "MTP projection";
  if (module == "weights_proj") return "indexer gate";  // DeepSeek sparse attention: engines hold it unquantized
  return {};
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
  Chooser(const Catalog& catalog, const RecipeRules& rules) : catalog_(catalog), rules_(rules) {
    for (std::string_view entry : rules.modules_to_not_convert) {
      if (entry.starts_with('.')) entry.remove_prefix(1);
      if (entry.ends_with('.')) entry.remove_suffix(1);
      modules_.insert(entry);
      SplitInto(entry, &parts_);
      longest_module_ = std::max(longest_module_, parts_.size());
    }
    if (rules.last_layers_bf16 > 0) {
      int64_t highest = -1;
      for (const Tensor& tensor : catalog.tensors()) {
        SplitInto(tensor.name, &parts_);
        highest = std::max(highest, LayerOf(parts_));
      }
      first_of_last_layers_ = highest + 1 - rules.last_layers_bf16;
    }
  }

  RecipeChoice Choose(const Tensor& tensor) {
    const Recipe fp8{true, rules_.granularity, rules_.scale_format, rules_.preset};
    if (const std::string_view why = KeptAlways(tensor); !why.empty()) return {Recipe{}, why};
    if (MatchesAny(rules_.exclude, tensor.name)) return {Recipe{}, "excluded by a rule"};
    if (MatchesAny(rules_.include, tensor.name)) {
      if (tensor.shape.size() == 2) return {fp8, "included by a rule"};
      return {Recipe{}, "included by a rule, but not 2-D"};
    }
    SplitInto(tensor.name, &parts_);
    if (const std::string_view why = KeptByName(parts_); !why.empty()) return {Recipe{}, why};
    if (const std::string_view why = KeptByShape(tensor); !why.empty()) return {Recipe{}, why};
    if (parts_.back() != "weight") return {Recipe{}, "not a .weight"};
    if (InModulesToNotConvert()) return {Recipe{}, "in modules_to_not_convert"};
    if (const std::string_view why = KeptByLayer(); !why.empty()) return {Recipe{}, why};
    return {fp8, "linear weight"};
  }

 private:
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
    const int64_t weight = catalog_.Find(std::string(name.substr(0, dot)) + ".weight");
    return weight >= 0 && !IsQuantizable(catalog_.tensors()[weight].dtype);
  }

  // Looks every run of components up in the set, so a checkpoint that lists 45,000 modules costs no more than one.
  bool InModulesToNotConvert() const {
    if (modules_.empty()) return false;
    for (size_t first = 0; first < parts_.size(); ++first) {
      const size_t end = std::min(parts_.size(), first + longest_module_);
      for (size_t last = first; last < end; ++last) {
        const char* begin = parts_[first].data();
        const size_t size = parts_[last].data() + parts_[last].size() - begin;
        if (modules_.contains(std::string_view(begin, size))) return true;
      }
    }
    return false;
  }

  std::string_view KeptByLayer() const {
    const int64_t layer = LayerOf(parts_);
    if (layer < 0) return {};
    if (layer < rules_.first_layers_bf16) return "in the first layers";
    if (rules_.last_layers_bf16 > 0 && layer >= first_of_last_layers_) return "in the last layers";
    return {};
  }

  const Catalog& catalog_;
  const RecipeRules& rules_;
  absl::flat_hash_set<std::string_view> modules_;
  size_t longest_module_ = 0;
  int64_t first_of_last_layers_ = 0;
  Parts parts_;  // of the tensor at hand; kept to spare an allocation per tensor
};

// Position after the set that opens at glob[open], or npos if nothing closes it. A ']' first in a set is a member.
size_t SetEnd(std::string_view glob, size_t open) {
  size_t i = open + 1;
  if (i < glob.size() && glob[i] == '!') ++i;
  const size_t close = glob.find(']', i + 1);
  return close == std::string_view::npos ? close : close + 1;
}

bool SetContains(std::string_view set, char c) {
  const bool negated = set.starts_with('!');
  if (negated) set.remove_prefix(1);
  bool found = false;
  while (!set.empty()) {
    const bool range = set.size() >= 3 && set[1] == '-';
    const char high = range ? set[2] : set[0];
    found = found || (set[0] <= c && c <= high);
    set.remove_prefix(range ? 3 : 1);
  }
  return found != negated;
}

// Matches one character at *at and moves *at behind what matched it.
bool MatchOne(std::string_view glob, size_t* at, char c) {
  if (*at >= glob.size()) return false;
  const size_t set_end = glob[*at] == '[' ? SetEnd(glob, *at) : std::string_view::npos;
  if (set_end != std::string_view::npos) {
    const bool matches = SetContains(glob.substr(*at + 1, set_end - *at - 2), c);
    *at = set_end;
    return matches;
  }
  const char expected = glob[(*at)++];
  return expected == '?' || expected == c;
}

absl::Status CheckGlobs(const std::string& rule, const std::vector<std::string>& globs) {
  for (const std::string& glob : globs) {
    if (glob.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("recipe: an empty glob in '", rule, "' would match nothing"));
    }
    for (size_t i = 0; i < glob.size(); i = glob[i] == '[' ? SetEnd(glob, i) : i + 1) {
      if (glob[i] == '[' && SetEnd(glob, i) == std::string_view::npos) {
        return absl::InvalidArgumentError(absl::StrCat("recipe: glob '", glob, "' in '", rule,
                                                       "' opens a '[' at position ", i, " that no ']' closes"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckModules(const std::vector<std::string>& modules) {
  for (const std::string& entry : modules) {
    if (entry.empty()) {
      return absl::InvalidArgumentError("recipe: an empty entry in 'modules_to_not_convert'; remove it");
    }
    if (entry.starts_with("re:")) {
      return absl::InvalidArgumentError(absl::StrCat("recipe: 'modules_to_not_convert' entry '", entry,
                                                     "' is a regular expression, which is not supported; write it as "
                                                     "an 'exclude' glob"));
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
  if (absl::Status status = CheckModules(rules.modules_to_not_convert); !status.ok()) return status;
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

std::vector<std::string> GlobsWithoutMatch(const Catalog& catalog, const RecipeRules& rules) {
  std::vector<std::string> sentences;
  const std::vector<Tensor>& tensors = catalog.tensors();
  const auto check = [&](const char* rule, const std::vector<std::string>& globs) {
    for (const std::string& glob : globs) {
      const auto matches = [&glob](const Tensor& tensor) { return GlobMatch(glob, tensor.name); };
      if (tensors.empty() || std::any_of(tensors.begin(), tensors.end(), matches)) continue;
      sentences.push_back(absl::StrCat("glob '", glob, "' in '", rule,
                                       "' matches no tensor's name; names are such as '",
                                       tensors[tensors.size() / 2].name, "'"));
    }
  };
  check("include", rules.include);
  check("exclude", rules.exclude);
  check("allow_infinities", rules.allow_infinities);
  return sentences;
}

std::string ScaleName(std::string_view name, Granularity granularity) {
  return std::string(name) + (granularity == Granularity::kBlock ? "_scale_inv" : "_scale");
}

bool GlobMatch(std::string_view glob, std::string_view text) {
  size_t g = 0, t = 0;
  size_t after_star = std::string_view::npos, star_text = 0;  // where to go back to: only the last '*' ever matters
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      after_star = ++g;
      star_text = t;
    } else if (MatchOne(glob, &g, text[t])) {
      ++t;
    } else if (after_star != std::string_view::npos) {
      g = after_star;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

}  // namespace wsync
