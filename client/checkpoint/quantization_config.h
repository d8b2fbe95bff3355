// The `quantization_config` of config.json: how an FP8 checkpoint tells transformers, vLLM and SGLang what it is.
// Derived from the tensors that are written, so that no loader makes an FP8 module of a weight that is none.
//
// Block scales are `quant_method: fp8` as DeepSeek-V3 defined it; channel and tensor scales are compressed-tensors'
// `float-quantized`. Modules that stay in high precision are listed by full name: vLLM compares whole names (and for
// fused modules wants all shards listed), transformers takes prefixes and suffixes. Pure functions.
#ifndef WSYNC_CLIENT_CHECKPOINT_QUANTIZATION_CONFIG_H_
#define WSYNC_CLIENT_CHECKPOINT_QUANTIZATION_CONFIG_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "client/checkpoint/strict_json.h"
#include "kernels/format.h"
#include "server/core/catalog.h"

namespace wsync {

// The modules among the tensors of a written checkpoint that are not FP8, in the order given, each once:
// - "X" for every `X.weight` of two dimensions or more: linear layers, convolutions, embeddings, routers;
// - "X" for any other such tensor `X.y`, if nothing FP8 is below X: `nn.MultiheadAttention`'s `in_proj_weight`, stacks;
// - "X.experts" where no expert is FP8: that is the module that loaders build of all of them, under whatever names;
// - `lm_head`, unless it is FP8: a model with tied embeddings has no such tensor, yet transformers builds the module
//   and would make it FP8; and the heads of families (`config`'s model_type) that call theirs otherwise.
std::vector<std::string> HighPrecisionModules(absl::Span<const Tensor> written, const OrderedJson& config);

// `pow2_scales`: every FP8 weight has power-of-two scales; readers may then repack them as UE8M0.
OrderedJson QuantizationConfig(Granularity granularity, bool pow2_scales,
                               const std::vector<std::string>& high_precision_modules);

// A tensor of a checkpoint that is being written.
struct WrittenTensor {
  Tensor tensor;
  bool encoded = false;             // codes or scales that wsync made
  const std::byte* data = nullptr;  // REQUIRED unless encoded
};

// The config.json of a checkpoint of these tensors, made from the one that it came from. Where nothing is encoded that
// is `source`: it still describes the weights. Else it says what `written` is, `source`'s own schemes (source_scheme.h)
// left out. `scale_fmt` is "ue8m0" if every scale is a power of two: those made with ScaleFormat::kPow2, others by
// their bytes.
std::optional<OrderedJson> WrittenConfig(const std::optional<OrderedJson>& source, Granularity granularity,
                                         ScaleFormat scale_format, const std::vector<WrittenTensor>& written);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_QUANTIZATION_CONFIG_H_
