// What a tensor's name says about its place in a model, and whether it can be a linear weight at all.
//
// The families do not agree on names, so each kind is known by the words that they use. What is kept here is what the
// families' official FP8 checkpoints keep in high precision. Pure functions of the name.
#ifndef WSYNC_SERVER_CORE_TENSOR_NAMES_H_
#define WSYNC_SERVER_CORE_TENSOR_NAMES_H_

#include <cstdint>
#include <string_view>
#include <vector>

namespace wsync {

using NameParts = std::vector<std::string_view>;  // a name's dot-separated components

void SplitName(std::string_view name, NameParts* parts);

// "model.layers.17.mlp.up_proj.weight" is in layer 17 of the stack "model.layers"; "h.", "blocks.", "block." and
// "layer." number layers, too.
struct LayerPlace {
  std::string_view stack;
  int64_t index = -1;  // -1: in no layer
};
LayerPlace LayerPlaceOf(std::string_view name, const NameParts& parts);

// Why the name alone says that this tensor stays as it is, as static text for `wsync plan`: "bias", "norm",
// "embedding", "output head", "router", "vision tower", "audio tower", "projector", "MTP projection", "LoRA adapter",
// "linear attention gate", "indexer gate"; "" if it may be a linear weight.
std::string_view KeptByName(const NameParts& parts, const LayerPlace& place);

// A component that only composite models have around their text model: "language_model".
bool IsOfLanguageModel(const NameParts& parts);

// A stack that predicts further tokens (`mtp.layers`, `model.mtp_layers`), or a tensor that only the layers of one have
// (`eh_proj`, `enorm`, `hnorm`, `shared_head`), which DeepSeek and GLM number on behind the model's own layers.
bool IsMtp(const NameParts& parts);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_TENSOR_NAMES_H_
