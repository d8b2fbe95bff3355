#include "client/cli/usage.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/checkpoint/model_shapes.h"
#include "server/core/plan.h"
#include "server/core/recipe.h"
#include "server/rpc/address.h"
#include "server/rpc/config_schema.h"
#include "server/rpc/config_units.h"
#include "server/rpc/wire_text.h"

namespace wsync::cli {
namespace {

using Names = std::vector<std::string>;

// The nearest name, by letters or as what the text begins; nullopt: none that could have been meant.
std::optional<std::string> Nearest(const std::string& text, const Names& names) {
  if (const auto near = ClosestName(text, names)) return near;
  for (const std::string& name : names) {
    if (text.find_first_not_of('-') != std::string::npos && name.starts_with(text)) return name;
  }
  return std::nullopt;
}

std::string DidYouMean(const std::string& text, const Names& names) {
  const auto near = Nearest(text, names);
  return near.has_value() ? absl::StrCat("; did you mean ", *near, "?") : "";
}

Names CommandsOf(const CLI::App& app) {
  Names names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App* c) { return !c->get_group().empty(); })) {
    names.push_back(command->get_name());
  }
  return names;
}

Names OptionsOf(const CLI::App& app) {
  Names names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::string NoCommand(const std::string& path, const std::string& word, const std::string& next,
                      const CLI::App& parent) {
  const Names commands = CommandsOf(parent);
  const std::string there_is_none = absl::StrCat(path, ": there is no command '", word, "'");
  if (word == "help") {
    const auto topic = next.empty() ? std::nullopt : Nearest(next, commands);
    return absl::StrCat(there_is_none, "; did you mean '", path, topic ? absl::StrCat(" ", *topic) : "", " --help'?");
  }
  if (const auto near = Nearest(word, commands)) {
    return absl::StrCat(there_is_none, "; did you mean '", path, " ", *near, "'?");
  }
  return absl::StrCat(there_is_none, "; there are ", absl::StrJoin(commands, ", "));
}

// What is wrong with an option or its value, without CLI11's types and counts.
std::string WrongOption(const std::string& path, const CLI::ParseError& error) {
  std::string text = error.what();
  if (error.get_name() == "ValidationError") return absl::StrCat(path, ": ", text);  // says what was expected
  if (error.get_name() == "ArgumentMismatch") {
    const std::string option = text.substr(0, text.find(':'));
    const bool missing = text.find("missing") != std::string::npos;
    text = absl::StrCat(option, missing ? " needs a value" : " is given more than once; keep one");
  }
  return absl::StrCat(path, ": ", text, "; '", path, " --help' shows options and examples");
}

CLI::Validator Check(std::string description, std::function<std::string(std::string&)> check) {
  return CLI::Validator(std::move(check), std::move(description));
}

}  // namespace

std::string UsageText(const CLI::App& app, const CLI::ParseError& error) {
  std::string path = app.get_name();
  for (const CLI::App* at = &app;; at = at->get_subcommands().front(), absl::StrAppend(&path, " ", at->get_name())) {
    const Names unknown = at->remaining();
    for (const std::string& word : unknown) {
      if (word.size() < 2 || word[0] != '-' || word == "--") continue;
      const std::string option = word.substr(0, word.find('='));
      const auto near = option.size() > 2 ? Nearest(option, OptionsOf(*at)) : std::nullopt;
      return absl::StrCat(
          path, ": there is no option '", option, "'",
          near ? absl::StrCat("; did you mean '", *near, "'?") : absl::StrCat("; '", path, " --help' lists them"));
    }
    const bool has_commands = !CommandsOf(*at).empty();
    if (has_commands && !unknown.empty()) return NoCommand(path, unknown[0], unknown.size() > 1 ? unknown[1] : "", *at);
    if (!unknown.empty()) {
      return absl::StrCat(path, ": '", unknown[0], "' is one word too many; '", path,
                          " --help' shows options and examples");
    }
    if (!at->get_subcommands().empty()) continue;
    if (has_commands) return absl::StrCat(path, " needs a command: ", absl::StrJoin(CommandsOf(*at), ", "));
    return WrongOption(path, error);
  }
}

CLI::Validator OneOf(const Names& names) {
  return Check(absl::StrCat("{", absl::StrJoin(names, ","), "}"), [names](const std::string& text) {
    if (std::find(names.begin(), names.end(), text) != names.end()) return std::string();
    return absl::StrCat(Quoted(text), " is none of ", absl::StrJoin(names, ", "), DidYouMean(text, names));
  });
}

CLI::Validator WholeNumber(int64_t low, int64_t high) {
  const std::string range = high >= INT32_MAX ? absl::StrCat("from ", low, " on") : absl::StrCat(low, " to ", high);
  return Check("", [=](const std::string& text) {
    const ParsedNumber number = ParseInteger(text);
    if (!number.fault && number.value >= low && number.value <= high) return std::string();
    return absl::StrCat(Quoted(text), " is not a whole number ", range);
  });
}

CLI::Validator Seconds(double low, double high) {
  return Check("", [=](const std::string& text) {
    double value = 0;
    if (absl::SimpleAtod(text, &value) && value >= low && value <= high) return std::string();
    return absl::StrCat(Quoted(text), " is not a number of seconds, ", low, " to ", high);
  });
}

CLI::Validator BucketBytes() {
  return Check("", [](std::string& text) {
    const ParsedNumber size = ParseSize(text);
    if (size.fault || size.value < kMinBucketBytes || size.value > kMaxBucketBytes) {
      return absl::StrCat(Quoted(text), " is not a size of ", SizeText(kMinBucketBytes), " to ",
                          SizeText(kMaxBucketBytes), ", such as 64MiB");
    }
    text = absl::StrCat(size.value);
    return std::string();
  });
}

CLI::Validator KnownModel() {
  return Check("", [](const std::string& text) {
    const Names models = KnownModels();
    if (std::find(models.begin(), models.end(), text) != models.end()) return std::string();
    return absl::StrCat(Quoted(text), " is no model whose shapes are known; those are ", absl::StrJoin(models, ", "),
                        DidYouMean(text, models));
  });
}

CLI::Validator TcpAddress() {
  return Check("", [](const std::string& text) {
    const auto address = ParseAddress(text);
    if (!address.ok()) return std::string(address.status().message());
    if (!address->is_unix && address->port != 0) return std::string();
    return absl::StrCat(Quoted(text), " cannot be dialled; expected host:port such as 127.0.0.1:7470");
  });
}

CLI::Validator LocalSocket() {
  return Check("", [](const std::string& text) {
    if (text.starts_with("/")) return absl::StrCat(Quoted(text), " has no scheme; write unix://", text);
    const auto address = ParseAddress(text);
    if (address.ok() && address->is_unix) return std::string();
    return absl::StrCat(Quoted(text), " is not a local socket; expected such as unix:///run/wsync/trainer.sock");
  });
}

CLI::Validator TensorGlob() {
  return Check(
      "", [](const std::string& text) { return std::string(ValidateRules(RecipeRules{.include = {text}}).message()); });
}

}  // namespace wsync::cli
