#include "client/cli/command.h"

#include <cstdio>
#include <memory>

namespace wsync::cli {
namespace {

ExitCode last_exit = kOk;  // one command runs per process

}  // namespace

ExitCode Fail(const absl::Status& status) {
  std::fprintf(stderr, "wsync: %s\n", std::string(status.message()).c_str());
  return absl::IsUnavailable(status) ? kUnreachable : kError;
}

CLI::App* AddCommand(CLI::App& parent, const std::string& name, const std::string& summary, const std::string& examples,
                     std::function<ExitCode()> body) {
  CLI::App* command = parent.add_subcommand(name, summary);
  command->footer(examples.empty() ? "" : "Examples:\n" + examples);
  if (body) command->callback([body = std::move(body)] { last_exit = body(); });
  return command;
}

ExitCode LastExit() { return last_exit; }

}  // namespace wsync::cli
