#include "client/checkpoint/quantization_config.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace wsync {
namespace {

constexpr absl::string_view kWeightSuffix = ".weight";
constexpr char kHead[] = "lm_head";

// By name, since files do not say: embed_tokens, word_embeddings, patch_embed; GPT-2's wte and wpe.
bool IsEmbedding(absl::string_view module) {
  const absl::string_view last = module.substr(module.rfind('.') + 1);
  return absl::StrContains(last, "embed") || last == "wte" || last == "wpe";
}

OrderedJson BlockConfig(bool pow2_scales, const std::vector<std::string>& modules) {
  OrderedJson config = {{"quant_method", "fp8"},
                        {"fmt", "e4m3"},
                        {"activation_scheme", "dynamic"},
                        {"weight_block_size", {kBlockSize, kBlockSize}}};
  if (pow2_scales) config["scale_fmt"] = "ue8m0";
  config["modules_to_not_convert"] = modules;  // transformers, SGLang, newer vLLM
  config["ignored_layers"] = modules;          // vLLM
  return config;
}

OrderedJson CompressedTensorsConfig(Granularity granularity, const std::vector<std::string>& modules) {
  const bool per_channel = granularity == Granularity::kChannel;
  const auto arguments = [](const char* strategy, bool dynamic) {
    return OrderedJson{
        {"num_bits", 8}, {"type", "float"}, {"symmetric", true}, {"strategy", strategy}, {"dynamic", dynamic}};
  };
  return {{"quant_method", "compressed-tensors"},
          {"format", "float-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0",
             {{"targets", OrderedJson::array({"Linear"})},
              {"weights", arguments(per_channel ? "channel" : "tensor", false)},
              {"input_activations", arguments(per_channel ? "token" : "tensor", true)}}}}},
          {"ignore", modules}};
}

}  // namespace

std::vector<std::string> HighPrecisionModules(absl::Span<const Tensor> written) {
  std::vector<std::string> modules;
  bool head_seen = false;
  for (const Tensor& tensor : written) {
    absl::string_view module = tensor.name;
    if (tensor.shape.size() != 2 || !absl::ConsumeSuffix(&module, kWeightSuffix) || IsEmbedding(module)) continue;
    head_seen = head_seen || module == kHead;
    if (tensor.dtype != Dtype::kF8E4M3) modules.emplace_back(module);
  }
  if (!head_seen) modules.emplace_back(kHead);
  return modules;
}

OrderedJson QuantizationConfig(Granularity granularity, bool pow2_scales,
                               const std::vector<std::string>& high_precision_modules) {
  return granularity == Granularity::kBlock ? BlockConfig(pow2_scales, high_precision_modules)
                                            : CompressedTensorsConfig(granularity, high_precision_modules);
}

OrderedJson WithQuantizationConfig(OrderedJson config, Granularity granularity, bool pow2_scales,
                                   absl::Span<const Tensor> written) {
  config["quantization_config"] = QuantizationConfig(granularity, pow2_scales, HighPrecisionModules(written));
  return config;
}

}  // namespace wsync
