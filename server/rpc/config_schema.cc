#include "server/rpc/config_schema.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "server/rpc/config_units.h"
#include "server/rpc/wire_text.h"

namespace wsync {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr size_t kMaxKeyBytes = 80;  // longer names are no slip of a finger, and distance takes quadratic time

ValueKind KindOf(const FieldDescriptor& field) {
  if (field.is_repeated()) return ValueKind::kTextList;
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_BOOL) return ValueKind::kBool;
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) return ValueKind::kText;
  if (absl::EndsWith(field.name(), "_bytes") || absl::EndsWith(field.name(), "_bytes_per_second")) {
    return ValueKind::kBytes;
  }
  return absl::EndsWith(field.name(), "_ms") ? ValueKind::kDuration : ValueKind::kInteger;
}

void Walk(const Descriptor& schema, const SchemaField& parent, std::vector<SchemaField>* fields) {
  for (int i = 0; i < schema.field_count(); ++i) {
    const FieldDescriptor* descriptor = schema.field(i);
    SchemaField field = parent;
    field.path = absl::StrCat(parent.path, parent.path.empty() ? "" : ".", descriptor->name());
    if (descriptor->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      field.sections.push_back(descriptor);
      Walk(*descriptor->message_type(), field, fields);
      continue;
    }
    field.leaf = descriptor;
    field.kind = KindOf(*descriptor);
    field.rule = descriptor->options().GetExtension(v1::rule);
    fields->push_back(std::move(field));
  }
}

Message* MutableSection(const SchemaField& field, Message* config) {
  for (const FieldDescriptor* section : field.sections) {
    config = config->GetReflection()->MutableMessage(config, section);
  }
  return config;
}

const Message& Section(const SchemaField& field, const Message& config) {
  const Message* message = &config;
  for (const FieldDescriptor* section : field.sections)
    message = &message->GetReflection()->GetMessage(*message, section);
  return *message;
}

std::string NumberText(ValueKind kind, int64_t value) {
  if (kind == ValueKind::kBytes) return SizeText(value);
  return kind == ValueKind::kDuration ? DurationText(value) : absl::StrCat(value);
}

std::string RangeText(const SchemaField& field) {
  const auto text = [&](double limit) { return NumberText(field.kind, static_cast<int64_t>(limit)); };
  const v1::FieldRule& rule = field.rule;
  if (rule.has_min() && rule.has_max()) return absl::StrCat(text(rule.min()), " to ", text(rule.max()));
  if (rule.has_min()) return absl::StrCat("at least ", text(rule.min()));
  if (rule.has_max()) return absl::StrCat("at most ", text(rule.max()));
  return TypeText(field.kind);
}

// ", such as 256MiB" where the notation is not obvious from the range.
std::string Expectation(const SchemaField& field) {
  const bool has_units = field.kind == ValueKind::kBytes || field.kind == ValueKind::kDuration;
  const bool show_example = has_units && !field.rule.default_value().empty();
  return absl::StrCat("; expected ", ExpectedText(field),
                      show_example ? absl::StrCat(", such as ", field.rule.default_value()) : "");
}

std::optional<std::string> AssignNumber(const SchemaField& field, const std::string& text, Message* section) {
  const bool is_size = field.kind == ValueKind::kBytes;
  const bool is_duration = field.kind == ValueKind::kDuration;
  const ParsedNumber number = is_size ? ParseSize(text) : is_duration ? ParseDuration(text) : ParseInteger(text);
  if (number.fault == UnitFault::kMalformed) {
    const char* type = is_size ? "a size" : is_duration ? "a duration" : "an integer";
    return absl::StrCat(Quoted(text), " is not ", type, Expectation(field));
  }
  const bool is_int32 = field.leaf->cpp_type() == FieldDescriptor::CPPTYPE_INT32;
  const auto value = static_cast<double>(number.value);
  const bool outside =
      (field.rule.has_min() && value < field.rule.min()) || (field.rule.has_max() && value > field.rule.max()) ||
      (is_int32 &&
       (number.value < std::numeric_limits<int32_t>::min() || number.value > std::numeric_limits<int32_t>::max()));
  if (number.fault.has_value() || outside) return absl::StrCat(Quoted(text), " is out of range", Expectation(field));
  if (is_int32) {
    section->GetReflection()->SetInt32(section, field.leaf, static_cast<int32_t>(number.value));
  } else {
    section->GetReflection()->SetInt64(section, field.leaf, number.value);
  }
  return std::nullopt;
}

std::optional<std::string> AssignBool(const SchemaField& field, const std::string& text, Message* section) {
  if (text != "true" && text != "false") return absl::StrCat(Quoted(text), " is neither", Expectation(field));
  section->GetReflection()->SetBool(section, field.leaf, text == "true");
  return std::nullopt;
}

std::optional<std::string> CheckText(const std::string& text) {
  if (WireText(text) != text) return absl::StrCat(Quoted(text), " is not UTF-8; expected UTF-8 text");
  return std::nullopt;
}

std::optional<std::string> AssignText(const SchemaField& field, const std::string& text, Message* section) {
  if (auto problem = CheckText(text); problem.has_value()) return problem;
  const auto& choices = field.rule.one_of();
  if (!choices.empty() && std::find(choices.begin(), choices.end(), text) == choices.end()) {
    const auto near = ClosestName(text, {choices.begin(), choices.end()});
    return absl::StrCat(Quoted(text), " is unknown", Expectation(field),
                        near.has_value() ? absl::StrCat("; did you mean ", Quoted(*near), "?") : "");
  }
  section->GetReflection()->SetString(section, field.leaf, text);
  return std::nullopt;
}

std::optional<std::string> AssignList(const SchemaField& field, const std::vector<std::string>& texts,
                                      Message* section) {
  for (const std::string& text : texts) {
    if (text.empty()) return absl::StrCat("has an empty entry", Expectation(field));
    if (auto problem = CheckText(text); problem.has_value()) return problem;
  }
  section->GetReflection()->ClearField(section, field.leaf);
  for (const std::string& text : texts) section->GetReflection()->AddString(section, field.leaf, text);
  return std::nullopt;
}

// Plain where YAML reads the same text back, also inside a [list]; else in double quotes.
std::string YamlText(const std::string& text) {
  static constexpr char kPlain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:-+";
  const bool plain = !text.empty() && text.find_first_not_of(kPlain) == std::string::npos && text[0] != '-' &&
                     text[0] != ':' && text.back() != ':' && !absl::EqualsIgnoreCase(text, "null");
  return plain ? text : absl::StrCat("\"", absl::Utf8SafeCHexEscape(text), "\"");
}

// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        cost[i][j] = i + j;
        continue;
      }
      const size_t replaced = cost[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      cost[i][j] = std::min({replaced, cost[i - 1][j] + 1, cost[i][j - 1] + 1});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
    }
  }
  return cost[a.size()][b.size()];
}

}  // namespace

std::vector<SchemaField> WalkSchema(const Descriptor& schema) {
  std::vector<SchemaField> fields;
  Walk(schema, SchemaField(), &fields);
  return fields;
}

std::string FlagOf(const std::string& path) { return absl::StrCat("--", path); }

std::string VariableOf(const std::string& path) {
  return absl::StrCat("WSYNC_", absl::StrReplaceAll(absl::AsciiStrToUpper(path), {{".", "_"}}));
}

std::string TypeText(ValueKind kind) {
  switch (kind) {
    case ValueKind::kText:
      return "text";
    case ValueKind::kTextList:
      return "list of text";
    case ValueKind::kInteger:
      return "integer";
    case ValueKind::kBytes:
      return "bytes";
    case ValueKind::kDuration:
      return "duration";
    case ValueKind::kBool:
      return "true/false";
  }
  return "text";
}

std::string ExpectedText(const SchemaField& field) {
  switch (field.kind) {
    case ValueKind::kBool:
      return "true or false";
    case ValueKind::kTextList:
      return "a list of text";
    case ValueKind::kText:
      return field.rule.one_of().empty() ? "text" : absl::StrCat("one of: ", absl::StrJoin(field.rule.one_of(), ", "));
    case ValueKind::kInteger:
    case ValueKind::kBytes:
    case ValueKind::kDuration:
      return RangeText(field);
  }
  return "text";
}

std::optional<std::string> Assign(const SchemaField& field, const std::vector<std::string>& texts, Message* config) {
  Message* section = MutableSection(field, config);
  if (field.kind == ValueKind::kTextList) return AssignList(field, texts, section);
  const std::string& text = texts.back();
  switch (field.kind) {
    case ValueKind::kText:
      return AssignText(field, text, section);
    case ValueKind::kBool:
      return AssignBool(field, text, section);
    default:
      return AssignNumber(field, text, section);
  }
}

std::string ValueText(const SchemaField& field, const Message& config) {
  const Message& section = Section(field, config);
  const google::protobuf::Reflection* reflection = section.GetReflection();
  switch (field.kind) {
    case ValueKind::kText:
      return YamlText(reflection->GetString(section, field.leaf));
    case ValueKind::kBool:
      return reflection->GetBool(section, field.leaf) ? "true" : "false";
    case ValueKind::kTextList: {
      std::vector<std::string> texts;
      for (int i = 0; i < reflection->FieldSize(section, field.leaf); ++i) {
        texts.push_back(YamlText(reflection->GetRepeatedString(section, field.leaf, i)));
      }
      return absl::StrCat("[", absl::StrJoin(texts, ", "), "]");
    }
    default:
      break;
  }
  const bool is_int32 = field.leaf->cpp_type() == FieldDescriptor::CPPTYPE_INT32;
  return NumberText(field.kind,
                    is_int32 ? reflection->GetInt32(section, field.leaf) : reflection->GetInt64(section, field.leaf));
}

bool IsEmptyText(const SchemaField& field, const Message& config) {
  const Message& section = Section(field, config);
  return field.kind == ValueKind::kText && section.GetReflection()->GetString(section, field.leaf).empty();
}

std::optional<std::string> ClosestName(const std::string& name, const std::vector<std::string>& candidates,
                                       std::optional<size_t> max_distance) {
  if (name.size() > kMaxKeyBytes) return std::nullopt;
  size_t best = max_distance.value_or(std::max<size_t>(1, name.size() / 3)) + 1;  // further away it is another word
  std::optional<std::string> closest;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(name, candidate);
    if (distance >= best) continue;
    best = distance;
    closest = candidate;
  }
  return closest;
}

}  // namespace wsync
