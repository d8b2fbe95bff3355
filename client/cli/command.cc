#include "client/cli/command.h"

#include <memory>
#include <string>
#include <vector>

#include "client/cli/terminal.h"
#include "server/rpc/config.h"

namespace wsync::cli {
namespace {

ExitCode last_exit = kOk;  // one command runs per process

// A setting that was mistyped would be taken for one that was not made: the daemons refuse it as well.
bool EnvironmentIsSpeltRight() {
  const std::vector<std::string> problems = MistypedVariables();
  for (const std::string& problem : problems) Tell("wsync", problem);
  return problems.empty();
}

}  // namespace

ExitCode Fail(const absl::Status& status) {
  Tell("wsync", std::string(status.message()));
  return absl::IsUnavailable(status) ? kUnreachable : kError;
}

CLI::App* AddCommand(CLI::App& parent, const std::string& name, const std::string& summary, const std::string& examples,
                     std::function<ExitCode()> body) {
  CLI::App* command = parent.add_subcommand(name, summary);
  command->footer(examples.empty() ? "" : "Examples:\n" + examples);
  if (body) command->callback([body = std::move(body)] { last_exit = EnvironmentIsSpeltRight() ? body() : kUsage; });
  return command;
}

ExitCode LastExit() { return last_exit; }

}  // namespace wsync::cli
