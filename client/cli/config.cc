// wsync config: what a daemon would run with, and where each value comes from.
#include "server/rpc/config.h"

#include <cstdio>
#include <memory>

#include "client/cli/command.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#include "wsync/v1/config.pb.h"

namespace wsync::cli {
namespace {

struct ConfigArguments {
  std::string role = "trainer";
  std::string file;
  std::vector<std::string> set;
  bool effective = false;
};

std::unique_ptr<google::protobuf::Message> Schema(const std::string& role) {
  if (role == "rollout") return std::make_unique<v1::RolloutConfig>();
  return std::make_unique<v1::TrainerConfig>();
}

ExitCode ShowSchema(const google::protobuf::Message& schema) {
  Table table({"KEY", "TYPE", "DEFAULT", "EXPECTED", "MEANING"});
  for (const ConfigField& field : ConfigFields(schema)) {
    table.Add({field.path, field.type, field.default_text.empty() ? "-" : field.default_text,
               field.expected.empty() ? "-" : field.expected, field.help});
  }
  Write(stdout, table.Render(UseColor(stdout)));
  return kOk;
}

ExitCode Show(const ConfigArguments& arguments) {
  const std::unique_ptr<google::protobuf::Message> message = Schema(arguments.role);
  if (!arguments.effective && arguments.file.empty() && arguments.set.empty()) return ShowSchema(*message);
  ConfigInputs inputs;
  inputs.file = arguments.file;
  for (const std::string& assignment : arguments.set) {
    const size_t equals = assignment.find('=');
    if (equals == std::string::npos) {
      Print(stderr, "wsync: --set %s: expected KEY=VALUE, such as transfer.bucket_bytes=64MiB\n", assignment);
      return kUsage;
    }
    inputs.flags.emplace_back(assignment.substr(0, equals), assignment.substr(equals + 1));
  }
  const auto values = LoadConfig(inputs, message.get());
  if (!values.ok()) {
    (void)Fail(values.status());
    return kUsage;
  }
  Table table({"KEY", "VALUE", "ORIGIN"});
  for (const ConfigValue& value : *values) table.Add({value.path, value.text.empty() ? "-" : value.text, value.origin});
  Write(stdout, table.Render(UseColor(stdout)));
  return kOk;
}

}  // namespace

void AddConfig(CLI::App& app) {
  CLI::App* config = AddCommand(app, "config", "Show configuration keys and effective values", "", nullptr);
  config->require_subcommand(1);
  auto arguments = std::make_shared<ConfigArguments>();
  CLI::App* show =
      AddCommand(*config, "show", "List every key, or with --effective every value and its origin",
                 "  wsync config show                                            keys, defaults, meaning\n"
                 "  wsync config show --effective --config /etc/wsync/trainer.yaml\n"
                 "  WSYNC_JOB=rl wsync config show --role rollout --effective    flag > environment > file > default\n",
                 [arguments] { return Show(*arguments); });
  show->add_option("--role", arguments->role, "whose configuration")
      ->check(OneOf({"trainer", "rollout"}))
      ->capture_default_str();
  show->add_option("--config", arguments->file, "YAML file to read")->type_name("FILE");
  show->add_option("--set", arguments->set, "a value as a daemon's flag would give it")->type_name("KEY=VALUE");
  show->add_flag("--effective", arguments->effective, "values with their origins instead of the schema");
}

}  // namespace wsync::cli
