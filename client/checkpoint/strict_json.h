// JSON read strictly: a key given twice is an error, where JSON libraries silently keep the last one.
#ifndef WSYNC_CLIENT_CHECKPOINT_STRICT_JSON_H_
#define WSYNC_CLIENT_CHECKPOINT_STRICT_JSON_H_

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace wsync {

using Json = nlohmann::json;                 // for data: sorted keys, fast look-up
using OrderedJson = nlohmann::ordered_json;  // for documents people read: keeps the order of keys

// INVALID_ARGUMENT, prefixed with `what` (e.g. "index 'a/b.json'"): not JSON (with the position), a duplicate key
// (named), anything after the value.
absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& what);
absl::StatusOr<OrderedJson> ParseOrderedJson(std::string_view text, const std::string& what);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_STRICT_JSON_H_
