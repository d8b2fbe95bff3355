#include "server/core/tensor_names.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

namespace wsync {
namespace {

bool OneOf(std::string_view text, std::initializer_list<std::string_view> choices) {
  return std::find(choices.begin(), choices.end(), text) != choices.end();
}

bool Contains(std::string_view text, std::string_view word) { return text.find(word) != std::string_view::npos; }

template <typename Predicate>
bool AnyPart(const NameParts& parts, Predicate predicate) {
  return std::any_of(parts.begin(), parts.end(), predicate);
}

bool IsEmbedding(const NameParts& parts) {
  const std::string_view module = parts[parts.size() - 2];
  if (OneOf(module, {"wte", "wpe", "embed", "embedding", "embeddings"}) || module.starts_with("embed_") ||
      module.ends_with("_embed") || module.ends_with("_embedding") || module.ends_with("_embeddings")) {
    return !OneOf(module, {"embed_out"});  // GPT-NeoX's head
  }
  return AnyPart(parts, [](std::string_view part) { return part.starts_with("patch_embed"); });
}

// Value and classification heads are as sensitive as lm_head, and as small.
bool IsOutputHead(const NameParts& parts, const LayerPlace& place) {
  const std::string_view module = parts[parts.size() - 2];
  if (place.index < 0 && OneOf(module, {"output", "fc"})) return true;  // natively named checkpoints; EAGLE's entry
  return std::any_of(parts.begin(), parts.end() - 1, [](std::string_view part) {
    return part.ends_with("_head") || part.ends_with("lm_heads") ||
           OneOf(part, {"head", "score", "classifier", "embed_out", "qa_outputs"});
  });
}

bool IsRouter(const NameParts& parts) {
  return AnyPart(parts, [](std::string_view part) {
    return OneOf(part, {"gate", "router", "shared_expert_gate", "moe_gate", "gating"});
  });
}

// "norm", "q_norm", "input_layernorm", "LayerNorm", "norm1", "layer_norm_2"; not "normalizer" or "normal".
bool IsNorm(std::string_view module) {
  if (module.starts_with("ln_")) return true;
  module = module.substr(0, module.find_last_not_of("0123456789_") + 1);
  return module.ends_with("norm") || module.ends_with("Norm");
}

bool IsMtpStack(std::string_view part) { return part == "mtp" || part.starts_with("mtp_") || part == "mtps"; }

// What joins the hidden state and the embedding at the entry of an MTP layer.
bool IsMtpProjection(const NameParts& parts) {
  const std::string_view module = parts[parts.size() - 2];
  if (module == "eh_proj" || AnyPart(parts, [](std::string_view part) { return part == "mtp_linear_proj"; }))
    return true;
  return OneOf(module, {"fc", "input_proj"}) && AnyPart(parts, IsMtpStack);
}

// What stands between a tower and the language model, or feeds it what is no text.
std::string_view KeptByPart(std::string_view part) {
  if (part.starts_with("lora_")) return "LoRA adapter";
  if (part.ends_with("projector") || part.ends_with("connector") || part.ends_with("resampler") ||
      OneOf(part, {"mlp1", "aligner", "patch_merger", "merger", "vision_language_adapter"})) {
    return "projector";
  }
  if (Contains(part, "vision") || Contains(part, "visual") || part.starts_with("image_") ||
      part.starts_with("video_") || OneOf(part, {"vit", "vpm", "sam_model", "img_processor"})) {
    return "vision tower";
  }
  if (Contains(part, "audio") || Contains(part, "speech") || part.starts_with("sound_") ||
      OneOf(part, {"apm", "token2wav", "code2wav"})) {
    return "audio tower";
  }
  return {};
}

}  // namespace

void SplitName(std::string_view name, NameParts* parts) {
  parts->clear();
  for (size_t begin = 0;;) {
    const size_t dot = name.find('.', begin);
    parts->push_back(name.substr(begin, dot == std::string_view::npos ? dot : dot - begin));
    if (dot == std::string_view::npos) return;
    begin = dot + 1;
  }
}

LayerPlace LayerPlaceOf(std::string_view name, const NameParts& parts) {
  for (size_t i = 0; i + 2 < parts.size(); ++i) {
    const std::string_view word = parts[i], digits = parts[i + 1];
    if (!OneOf(word, {"layers", "layer", "h", "blocks", "block"}) && !word.ends_with("_layers")) continue;
    int32_t index = -1;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (parsed.ec != std::errc() || parsed.ptr != digits.data() + digits.size() || index < 0) continue;
    return {name.substr(0, static_cast<size_t>(word.data() + word.size() - name.data())), index};
  }
  return {};
}

std::string_view KeptByName(const NameParts& parts, const LayerPlace& place) {
  if (parts.back().ends_with("bias")) return "bias";
  if (parts.size() < 2) return {};
  const std::string_view module = parts[parts.size() - 2];
  if (module.ends_with("bias")) return "bias";  // relative_attention_bias: a table
  if (IsNorm(module)) return "norm";
  if (IsMtpProjection(parts)) return "MTP projection";
  if (IsOutputHead(parts, place)) return "output head";
  if (IsRouter(parts)) return "router";
  if (module == "weights_proj") return "indexer gate";  // DeepSeek sparse attention: engines hold it unquantized
  if (OneOf(module, {"in_proj_ba", "in_proj_a", "in_proj_b"})) return "linear attention gate";  // a row per head
  for (const std::string_view part : parts) {
    if (const std::string_view why = KeptByPart(part); !why.empty()) return why;
  }
  return IsEmbedding(parts) ? "embedding" : std::string_view();
}

bool IsOfLanguageModel(const NameParts& parts) {
  return AnyPart(parts, [](std::string_view part) { return part == "language_model"; });
}

bool IsMtp(const NameParts& parts) {
  return AnyPart(parts, [](std::string_view part) {
    return IsMtpStack(part) || OneOf(part, {"eh_proj", "enorm", "hnorm", "shared_head"});
  });
}

}  // namespace wsync
