#include "server/rpc/config.h"

#include <unistd.h>

#include <set>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/rpc/config_check.h"
#include "server/rpc/config_file.h"
#include "server/rpc/config_schema.h"
#include "wsync/v1/config.pb.h"

namespace wsync {
namespace {

using google::protobuf::Message;

constexpr char kDefaultOrigin[] = "default";
constexpr char kFilePrefix[] = "file ";

constexpr size_t kSlip = 2;  // letters by which a mistyped variable differs from the one that was meant

std::map<std::string, std::string> ProcessEnvironment() {
  std::map<std::string, std::string> result;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string_view::npos) result.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return result;
}

// The variables of both daemons: they may share an environment, and each leaves the other's alone.
std::vector<std::string> EveryVariable() {
  std::vector<std::string> result;
  for (const auto* schema : {v1::TrainerConfig::descriptor(), v1::RolloutConfig::descriptor()}) {
    for (const SchemaField& field : WalkSchema(*schema)) result.push_back(VariableOf(field.path));
  }
  return result;
}

std::vector<std::string> Mistyped(const std::map<std::string, std::string>& environment) {
  const std::vector<std::string> known = EveryVariable();
  std::vector<std::string> problems;
  for (const auto& [variable, text] : environment) {
    if (!absl::StartsWith(variable, "WSYNC_")) continue;
    const auto near = ClosestName(variable, known, kSlip);
    if (!near.has_value() || *near == variable) continue;
    problems.push_back(absl::StrCat("environment ", variable, ": no such key; did you mean ", *near, "?"));
  }
  return problems;
}

// One load: the origins are applied in rising precedence, problems are collected along the way.
class Loader {
 public:
  Loader(const ConfigInputs& inputs, Message* message)
      : inputs_(inputs), message_(message), fields_(WalkSchema(*message->GetDescriptor())) {
    for (const SchemaField& field : fields_) by_path_[field.path] = &field;
  }

  absl::StatusOr<std::vector<ConfigValue>> Load() {
    message_->Clear();
    if (absl::Status s = ApplyDefaults(); !s.ok()) return s;
    if (!inputs_.file.empty()) ApplyFile();
    ApplyEnvironment();
    ApplyFlags();
    CheckRequired();
    CheckTogether();
    if (!problems_.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems_, "\n"));
    std::vector<ConfigValue> values;
    for (const SchemaField& field : fields_) {
      values.push_back({field.path, ValueText(field, *message_), origins_[field.path]});
    }
    return values;
  }

 private:
  absl::Status ApplyDefaults() {
    for (const SchemaField& field : fields_) {
      origins_[field.path] = kDefaultOrigin;
      std::vector<std::string> texts;
      const bool is_list = field.kind == ValueKind::kTextList;
      if (!is_list || !field.rule.default_value().empty()) texts.push_back(field.rule.default_value());
      if (auto problem = Assign(field, texts, message_); problem.has_value()) {
        return absl::InternalError(absl::StrCat("config schema: default of ", field.path, ": ", *problem));
      }
    }
    return absl::OkStatus();
  }

  void Set(const SchemaField& field, const std::vector<std::string>& texts, const std::string& where,
           const std::string& origin) {
    if (auto problem = Assign(field, texts, message_); problem.has_value()) {
      problems_.push_back(absl::StrCat(where, ": ", *problem));
      bad_.insert(field.path);
    } else {
      origins_[field.path] = origin;
    }
  }

  void ApplyFile() {
    const ConfigFile file = ReadConfigFile(inputs_.file, *message_->GetDescriptor());
    std::multimap<int, std::string> by_line;
    for (const FileProblem& problem : file.problems) {
      by_line.emplace(problem.line, problem.line == 0 ? problem.text : absl::StrCat(At(problem.line), problem.text));
      bad_.insert(problem.path);
    }
    for (const FileEntry& entry : file.entries) {
      const std::string origin = absl::StrCat(kFilePrefix, inputs_.file, ":", entry.line);
      const size_t before = problems_.size();
      Set(*by_path_.at(entry.path), entry.texts, absl::StrCat(At(entry.line), entry.path), origin);
      if (problems_.size() == before) continue;
      by_line.emplace(entry.line, std::move(problems_.back()));
      problems_.pop_back();
    }
    for (auto& [line, problem] : by_line) problems_.push_back(std::move(problem));
  }

  std::string At(int line) const { return absl::StrCat(inputs_.file, ":", line, ": "); }

  static std::vector<std::string> SplitList(const SchemaField& field, const std::string& text) {
    if (field.kind != ValueKind::kTextList) return {text};
    if (text.empty()) return {};
    return absl::StrSplit(text, ',');
  }

  void ApplyEnvironment() {
    const auto environment = inputs_.environment.has_value() ? *inputs_.environment : ProcessEnvironment();
    for (const SchemaField& field : fields_) {
      const auto variable = environment.find(VariableOf(field.path));
      if (variable == environment.end()) continue;
      const std::string origin = absl::StrCat("environment ", variable->first);
      Set(field, SplitList(field, variable->second), origin, origin);
    }
    for (std::string& problem : Mistyped(environment)) problems_.push_back(std::move(problem));
  }

  void ApplyFlags() {
    std::map<std::string, std::vector<std::string>> given;
    for (const auto& [path, text] : inputs_.flags) {
      const auto field = by_path_.find(path);
      if (field == by_path_.end()) {
        UnknownFlag(path);
        continue;
      }
      for (std::string& part : SplitList(*field->second, text)) given[path].push_back(std::move(part));
      given[path];  // an empty list is a value, too
    }
    for (const SchemaField& field : fields_) {
      const auto texts = given.find(field.path);
      if (texts == given.end()) continue;
      const std::string origin = absl::StrCat("flag ", FlagOf(field.path));
      if (field.kind != ValueKind::kTextList && texts->second.size() > 1) {
        problems_.push_back(absl::StrCat(origin, ": given ", texts->second.size(), " times; keep one"));
        bad_.insert(field.path);
      } else {
        Set(field, texts->second, origin, origin);
      }
    }
  }

  void UnknownFlag(const std::string& path) {
    std::vector<std::string> paths;
    for (const SchemaField& field : fields_) paths.push_back(field.path);
    const auto near = ClosestName(path, paths);
    problems_.push_back(absl::StrCat("flag ", FlagOf(path), ": no such key",
                                     near.has_value() ? absl::StrCat("; did you mean ", FlagOf(*near), "?") : ""));
  }

  // "trainer.yaml:12: " of the first of these keys that is not at its default.
  std::string Where(const std::vector<std::string>& paths) {
    for (const std::string& path : paths) {
      absl::string_view origin = origins_[path];
      if (origin == kDefaultOrigin) continue;
      absl::ConsumePrefix(&origin, kFilePrefix);
      return absl::StrCat(origin, ": ");
    }
    return "";
  }

  void CheckRequired() {
    for (const SchemaField& field : fields_) {
      if (!field.rule.required() || bad_.count(field.path) > 0 || !IsEmptyText(field, *message_)) continue;
      problems_.push_back(
          absl::StrCat(Where({field.path}), field.path, ": must not be empty; expected ", field.rule.help()));
      bad_.insert(field.path);
    }
  }

  void CheckTogether() {
    for (const CrossProblem& problem : FindCrossProblems(*message_)) {
      bool already_reported = false;
      for (const std::string& path : problem.paths) already_reported = already_reported || bad_.count(path) > 0;
      if (!already_reported) problems_.push_back(absl::StrCat(Where(problem.paths), problem.text));
    }
  }

  const ConfigInputs& inputs_;
  Message* message_;
  const std::vector<SchemaField> fields_;
  std::map<std::string, const SchemaField*> by_path_;
  std::map<std::string, std::string> origins_;
  std::set<std::string> bad_;  // keys whose value is not what the user meant: no further complaints about them
  std::vector<std::string> problems_;
};

}  // namespace

std::vector<ConfigField> ConfigFields(const Message& schema) {
  std::unique_ptr<Message> defaults(schema.New());
  std::vector<ConfigField> result;
  for (const SchemaField& field : WalkSchema(*schema.GetDescriptor())) {
    const bool is_list = field.kind == ValueKind::kTextList;
    if (!is_list) Assign(field, {field.rule.default_value()}, defaults.get());
    result.push_back({.path = field.path,
                      .flag = FlagOf(field.path),
                      .variable = VariableOf(field.path),
                      .type = TypeText(field.kind),
                      .default_text = ValueText(field, *defaults),
                      .expected = ExpectedText(field),
                      .help = field.rule.help(),
                      .repeated = is_list});
  }
  return result;
}

std::vector<std::string> MistypedVariables() { return Mistyped(ProcessEnvironment()); }

absl::StatusOr<std::vector<ConfigValue>> LoadConfig(const ConfigInputs& inputs, Message* message) {
  return Loader(inputs, message).Load();
}

absl::Status CheckConfig(const Message& config) {
  std::vector<std::string> texts;
  for (const CrossProblem& problem : FindCrossProblems(config)) texts.push_back(problem.text);
  if (texts.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(texts, "\n"));
}

}  // namespace wsync
