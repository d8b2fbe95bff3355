// JSON documents that come from Python and go back to it: read strictly, written as they were.
//
// Reading is JsonReader's. A number that a JSON tree cannot hold (NaN, Infinity, -Infinity, whole numbers beyond 64
// bits, exponents beyond a double's) is kept by its text, as a value of type `binary`, which JSON itself never gives:
// is_number() is false for it, and DumpJson writes the text again. The text "Infinity" is text.
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
// (named), anything after the value, nesting deeper than 256.
absl::StatusOr<OrderedJson> ParseOrderedJson(std::string_view text, const std::string& what);

// `text` in quotes, escaped. REQUIRES: it is UTF-8.
std::string JsonText(const std::string& text);

// As `dump(2)` writes it, with a number kept by its text as that text.
std::string DumpJson(const OrderedJson& document);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_STRICT_JSON_H_
