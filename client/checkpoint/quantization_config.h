// The `quantization_config` of config.json: how an FP8 checkpoint tells transformers, vLLM and SGLang what it is.
//
// Block scales are `quant_method: fp8` as DeepSeek-V3 defined it; channel and tensor scales are compressed-tensors'
// `float-quantized`. Modules that stay in high precision are listed by full name: vLLM compares whole prefixes (and for
// fused modules wants all shards listed), transformers takes prefixes and suffixes. Pure functions.
#ifndef WSYNC_CLIENT_CHECKPOINT_QUANTIZATION_CONFIG_H_
#define WSYNC_CLIENT_CHECKPOINT_QUANTIZATION_CONFIG_H_

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "client/checkpoint/strict_json.h"
#include "kernels/format.h"
#include "server/core/catalog.h"

namespace wsync {

// The linear modules among the tensors of a written checkpoint whose weight is not FP8: every 2-D `X.weight` that is
// not an embedding, as "X", in the order given. `lm_head` is always listed unless it is FP8: a model with tied
// embeddings has no such tensor, yet transformers builds the module and would make it FP8.
std::vector<std::string> HighPrecisionModules(absl::Span<const Tensor> written);

// `pow2_scales`: every FP8 weight has power-of-two scales; readers may then repack them as UE8M0.
OrderedJson QuantizationConfig(Granularity granularity, bool pow2_scales,
                               const std::vector<std::string>& high_precision_modules);

// `config` with `quantization_config` set to the one that describes `written`; everything else stays as it is.
OrderedJson WithQuantizationConfig(OrderedJson config, Granularity granularity, bool pow2_scales,
                                   absl::Span<const Tensor> written);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_QUANTIZATION_CONFIG_H_
