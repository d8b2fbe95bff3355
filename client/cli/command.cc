#include "client/cli/command.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "server/rpc/config.h"

namespace wsync::cli {
namespace {

ExitCode last_exit = kOk;  // one command runs per process

// A setting that was mistyped would be taken for one that was not made: the daemons refuse it as well.
bool EnvironmentIsSpeltRight() {
  const std::vector<std::string> problems = MistypedVariables();
  for (const std::string& problem : problems) std::fprintf(stderr, "wsync: %s\n", problem.c_str());
  return problems.empty();
}

}  // namespace

ExitCode Fail(const absl::Status& status) {
  std::fprintf(stderr, "wsync: %s\n", std::string(status.message()).c_str());
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
