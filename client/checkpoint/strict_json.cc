#include "client/checkpoint/strict_json.h"

#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

template <typename Value>
absl::StatusOr<Value> Parse(std::string_view text, const std::string& what) {
  std::vector<absl::flat_hash_set<std::string>> open_objects;
  std::string duplicate;
  const auto on_event = [&](int, nlohmann::detail::parse_event_t event, Value& value) {
    using Event = nlohmann::detail::parse_event_t;
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && duplicate.empty()) {
      const auto& key = value.template get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) duplicate = key;
    }
    return true;
  };
  try {
    Value value = Value::parse(text.begin(), text.end(), on_event);
    if (duplicate.empty()) return value;
    return absl::InvalidArgumentError(absl::StrCat(what, " has the key '", duplicate, "' twice"));
  } catch (const nlohmann::detail::exception& error) {  // the library's way to give the position of a mistake
    return absl::InvalidArgumentError(absl::StrCat(what, " is not valid JSON: ", error.what()));
  }
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& what) { return Parse<Json>(text, what); }

absl::StatusOr<OrderedJson> ParseOrderedJson(std::string_view text, const std::string& what) {
  return Parse<OrderedJson>(text, what);
}

}  // namespace wsync
