#include "client/checkpoint/quantization_config.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/checkpoint/source_scheme.h"
#include "server/core/recipe_notes.h"

namespace wsync {
namespace {

constexpr absl::string_view kWeightSuffix = ".weight";
constexpr char kHead[] = "lm_head";

// Heads that are tied, and so not in the file, and not called lm_head.
constexpr std::pair<std::string_view, const char*> kTiedHeads[] = {{"gpt_neox", "embed_out"}, {"whisper", "proj_out"}};

class Lister {
 public:
  explicit Lister(absl::Span<const Tensor> written) {
    for (const Tensor& tensor : written) {
      if (tensor.dtype == Dtype::kF8E4M3) quantized_.insert(tensor.name);
    }
  }

  void Add(const std::string& module) {
    if (seen_.insert(module).second) modules_.push_back(module);
  }
  // A list's name keeps everything below it.
  void AddUnlessQuantizedBelow(const std::string& module) {
    const auto first = quantized_.lower_bound(module + ".");
    const bool below = first != quantized_.end() && absl::StartsWith(*first, module + ".");
    if (!module.empty() && !below) Add(module);
  }
  bool HasHead() const {
    const auto is_head = [](absl::string_view name) {
      return absl::ConsumeSuffix(&name, kWeightSuffix) && (name == kHead || absl::EndsWith(name, ".lm_head"));
    };
    return std::any_of(quantized_.begin(), quantized_.end(), is_head);
  }
  std::vector<std::string> Take() { return std::move(modules_); }

 private:
  std::set<std::string> quantized_;  // names
  std::set<std::string> seen_;
  std::vector<std::string> modules_;
};

// Granite's checkpoints have the experts under other names than the module that loaders make of them.
std::string ExpertsModule(const Tensor& tensor) {
  for (const char* stack : {".input_linear.weight", ".output_linear.weight"}) {
    absl::string_view around = tensor.name;
    if (tensor.shape.size() == 3 && absl::ConsumeSuffix(&around, stack)) return absl::StrCat(around, ".experts");
  }
  return std::string(ExpertsOf(tensor.name));
}

template <typename Bits>
bool AllPow2(const std::byte* data, int64_t count, int mantissa_bits) {
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  const Bits mantissa = static_cast<Bits>((Bits{1} << mantissa_bits) - 1);
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    const bool normal = (bits & ~(kSign | mantissa)) != 0;
    if ((bits & (kSign | mantissa)) != 0 || !normal) return false;
  }
  return true;
}

bool IsPow2(const WrittenTensor& scale) {
  const MatrixView view = ViewOf(scale.tensor);
  const int64_t count = view.rows * view.cols;
  switch (scale.tensor.dtype) {
    case Dtype::kF32:
      return AllPow2<uint32_t>(scale.data, count, 23);
    case Dtype::kBF16:
      return AllPow2<uint16_t>(scale.data, count, 7);
    case Dtype::kF16:
      return AllPow2<uint16_t>(scale.data, count, 10);
    default:
      return false;
  }
}

bool AllScalesArePow2(ScaleFormat scale_format, const std::vector<WrittenTensor>& written) {
  if (scale_format != ScaleFormat::kPow2) return false;
  std::set<std::string_view> passed_through;
  for (const WrittenTensor& w : written) {
    if (!w.encoded && w.tensor.dtype == Dtype::kF8E4M3) passed_through.insert(w.tensor.name);
  }
  return std::all_of(written.begin(), written.end(), [&](const WrittenTensor& w) {
    const std::string_view name = w.tensor.name;
    const size_t end = name.rfind("_scale");
    if (w.encoded || end == std::string_view::npos || !passed_through.contains(name.substr(0, end))) return true;
    return IsPow2(w);
  });
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

// vLLM judges a layer's experts by the names of the first one, which a list of stacks does not have.
std::vector<std::string> WithFirstExperts(std::vector<std::string> modules) {
  const std::set<std::string> listed(modules.begin(), modules.end());
  for (const std::string& module : listed) {
    if (!absl::EndsWith(module, ".experts")) continue;
    for (const char* projection : {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}) {
      const std::string first = absl::StrCat(module, ".0.", projection);
      if (!listed.contains(first)) modules.push_back(first);
    }
  }
  return modules;
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
          {"ignore", WithFirstExperts(modules)}};
}

}  // namespace

std::vector<std::string> HighPrecisionModules(absl::Span<const Tensor> written, const OrderedJson& config) {
  Lister lister(written);
  for (const Tensor& tensor : written) {
    if (tensor.dtype == Dtype::kF8E4M3 || tensor.shape.size() < 2) continue;
    lister.AddUnlessQuantizedBelow(ExpertsModule(tensor));
    const std::string module = tensor.name.substr(0, std::max<size_t>(tensor.name.rfind('.') + 1, 1) - 1);
    absl::EndsWith(tensor.name, kWeightSuffix) ? lister.Add(module) : lister.AddUnlessQuantizedBelow(module);
  }
  if (!lister.HasHead()) lister.Add(kHead);
  const auto type = config.find("model_type");
  for (const auto& [family, head] : kTiedHeads) {
    if (type != config.end() && *type == family) lister.AddUnlessQuantizedBelow(head);
  }
  return lister.Take();
}

OrderedJson QuantizationConfig(Granularity granularity, bool pow2_scales,
                               const std::vector<std::string>& high_precision_modules) {
  return granularity == Granularity::kBlock ? BlockConfig(pow2_scales, high_precision_modules)
                                            : CompressedTensorsConfig(granularity, high_precision_modules);
}

std::optional<OrderedJson> WrittenConfig(const std::optional<OrderedJson>& source, Granularity granularity,
                                         ScaleFormat scale_format, const std::vector<WrittenTensor>& written) {
  if (std::none_of(written.begin(), written.end(), [](const WrittenTensor& w) { return w.encoded; })) return source;
  std::vector<Tensor> tensors;
  for (const WrittenTensor& w : written) tensors.push_back(w.tensor);
  OrderedJson config = WithoutSourceSchemes(source.value_or(OrderedJson::object()));
  config["quantization_config"] =
      QuantizationConfig(granularity, AllScalesArePow2(scale_format, written), HighPrecisionModules(tensors, config));
  return config;
}

}  // namespace wsync
