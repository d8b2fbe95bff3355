#include "client/checkpoint/strict_json.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <system_error>
#include <utility>

#include "client/checkpoint/json_reader.h"

namespace wsync {
namespace {

template <typename Number>
bool Parse(std::string_view text, Number* value) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), *value);
  return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
}

OrderedJson NumberOf(std::string_view text) {
  const bool is_word = text.ends_with('N') || text.ends_with('y');
  const bool is_whole = text.find_first_of(".eE") == std::string_view::npos;
  uint64_t natural = 0;
  int64_t whole = 0;
  double real = 0;
  if (!is_word && is_whole && Parse(text, &natural)) return natural;
  if (!is_word && is_whole && Parse(text, &whole)) return whole;
  if (!is_word && !is_whole && Parse(text, &real)) return real;
  return OrderedJson::binary({text.begin(), text.end()});
}

absl::Status Read(JsonReader& reader, OrderedJson* out);

absl::Status ReadObject(JsonReader& reader, OrderedJson* out) {
  *out = OrderedJson::object();
  auto& members = out->get_ref<OrderedJson::object_t&>();
  return reader.ReadObject([&](std::string&& key) {
    OrderedJson value;
    absl::Status status = Read(reader, &value);
    // Past the look-up of operator[], which goes along all keys: the reader knows that this one is new.
    if (status.ok()) members.emplace_back(std::move(key), std::move(value));
    return status;
  });
}

absl::Status ReadScalar(JsonReader& reader, OrderedJson* out) {
  if (reader.Peek() == JsonReader::Kind::kString) {
    auto text = reader.ReadString();
    if (text.ok()) *out = *std::move(text);
    return text.status();
  }
  if (reader.Peek() == JsonReader::Kind::kNumber) {
    const auto number = reader.ReadNumber();
    if (number.ok()) *out = NumberOf(*number);
    return number.status();
  }
  const auto word = reader.ReadWord();
  if (!word.ok()) return word.status();
  *out = *word == "null" ? OrderedJson(nullptr) : OrderedJson(*word == "true");
  return absl::OkStatus();
}

absl::Status Read(JsonReader& reader, OrderedJson* out) {
  if (reader.Peek() == JsonReader::Kind::kObject) return ReadObject(reader, out);
  if (reader.Peek() != JsonReader::Kind::kArray) return ReadScalar(reader, out);
  *out = OrderedJson::array();
  return reader.ReadArray([&] {
    out->push_back(nullptr);
    return Read(reader, &out->back());
  });
}

void Dump(const OrderedJson& value, const std::string& indent, std::string* out) {
  const bool is_object = value.is_object();
  if (value.is_binary()) {
    out->append(value.get_binary().begin(), value.get_binary().end());
  } else if (!value.is_structured() || value.empty()) {
    *out += value.dump();
  } else {
    const std::string inner = indent + "  ";
    *out += is_object ? '{' : '[';
    const char* separator = "\n";
    for (auto it = value.begin(); it != value.end(); ++it, separator = ",\n") {
      out->append(separator).append(inner);
      if (is_object) out->append(JsonText(it.key())).append(": ");
      Dump(*it, inner, out);
    }
    out->append("\n").append(indent) += is_object ? '}' : ']';
  }
}

}  // namespace

absl::StatusOr<OrderedJson> ParseOrderedJson(std::string_view text, const std::string& what) {
  JsonReader reader(text, what);
  OrderedJson document;
  if (absl::Status status = Read(reader, &document); !status.ok()) return status;
  if (absl::Status status = reader.End(); !status.ok()) return status;
  return document;
}

std::string JsonText(const std::string& text) {
  const bool is_plain =
      std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7F && c != '"' && c != '\\'; });
  return is_plain ? '"' + text + '"' : Json(text).dump();  // names of tensors are plain, and there may be many
}

std::string DumpJson(const OrderedJson& document) {
  std::string out;
  Dump(document, "", &out);
  return out;
}

}  // namespace wsync
