// How a checkpoint says that it is quantized already: `quantization_config` (or `compression_config`) in config.json,
// at the top or in a sub-config such as `text_config`. Pure functions.
#ifndef WSYNC_CLIENT_CHECKPOINT_SOURCE_SCHEME_H_
#define WSYNC_CLIENT_CHECKPOINT_SOURCE_SCHEME_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/checkpoint/strict_json.h"
#include "kernels/format.h"

namespace wsync {

struct SourceScheme {
  std::string where;                   // "text_config.quantization_config"
  const OrderedJson* value = nullptr;  // an object within the config
};

std::vector<SourceScheme> SourceSchemes(const OrderedJson& config);

// The modules that they keep in high precision, for RecipeRules: `modules_to_not_convert`, `ignored_layers`, `ignore`,
// `exclude_modules`, `exclude` and `llm_int8_skip_modules`. Each once, sorted. The syntax is module_list.h's.
std::vector<std::string> ModulesToNotConvert(const std::optional<OrderedJson>& config);

// INVALID_ARGUMENT naming both schemes and what to do: one of them is another than wsync writes for `granularity`, so
// that the tensors that are quantized already could not be described together with more. `what` is the checkpoint.
absl::Status CheckSourceSchemes(const std::optional<OrderedJson>& config, Granularity granularity,
                                const std::string& what);

// The same for who does not know the granularity: refuses what wsync writes for none.
absl::Status CheckSourceSchemes(const std::optional<OrderedJson>& config, const std::string& what);

// `config` without any of them.
OrderedJson WithoutSourceSchemes(OrderedJson config);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_SOURCE_SCHEME_H_
