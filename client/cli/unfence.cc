// wsync unfence: lets members take part again that the coordinator goes on without.
#include <cstdio>
#include <memory>
#include <string>

#include "client/cli/command.h"
#include "client/cli/coordinator_options.h"
#include "client/cli/terminal.h"
#include "client/local/status_client.h"

namespace wsync::cli {
namespace {

struct UnfenceOptions {
  CoordinatorOptions coordinator;
  std::string name;
  bool all = false;
};

ExitCode RunUnfence(const UnfenceOptions& options) {
  if (options.name.empty() && !options.all) {
    Tell("wsync", "unfence whom? Give the member's name as `wsync status` has it, or --all");
    return kUsage;
  }
  const auto reply = UnfenceMember(options.coordinator.address, options.coordinator.Tls(),
                                   options.coordinator.Timeout(), options.name);
  if (!reply.ok()) return Fail(reply.status());
  for (const std::string& name : reply->names()) Print(stdout, "%s is fenced no more\n", name);
  if (reply->names().empty()) Tell("wsync", "nobody was fenced");
  return kOk;
}

}  // namespace

void AddUnfence(CLI::App& app) {
  auto options = std::make_shared<UnfenceOptions>();
  CLI::App* command =
      AddCommand(app, "unfence", "Let a member take part again that was fenced for versions it cost",
                 "  wsync unfence rollout-3          the name as `wsync status` has it\n"
                 "  wsync unfence --all\n"
                 "\nA member that is to blame for two lost versions in a row is fenced: versions go to the\n"
                 "others. Mend what its last error names first, or the next two versions are lost again.\n"
                 "Restarting its agent ends a fence as well.\n"
                 "\nExit codes: 0 done, 1 it is not fenced, 4 unreachable.\n",
                 [options] { return RunUnfence(*options); });
  options->coordinator.AddTo(*command);
  CLI::Option* name = command->add_option("name", options->name, "the member");
  CLI::Option* all = command->add_flag("--all", options->all, "every member that is fenced");
  name->excludes(all);
}

}  // namespace wsync::cli
