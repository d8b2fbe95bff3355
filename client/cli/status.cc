// wsync status, wsync verify: what the coordinator knows.
#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "client/cli/command.h"
#include "client/cli/coordinator_options.h"
#include "client/cli/status_view.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#include "client/local/status_client.h"

namespace wsync::cli {
namespace {

struct StatusOptions {
  CoordinatorOptions coordinator;
  std::string output = "table";
  bool watch = false;
  bool deep = false;
};

constexpr size_t kFewestMembers = 5;                       // less than these say nothing, however small a window is
constexpr absl::Duration kDeepTimeout = absl::Minutes(2);  // one pass over a model's memory, wherever it lies

std::string Render(const v1::JobStatus& status, const std::string& output) {
  if (output == "json") return StatusJson(status);
  StatusViewOptions view;
  view.wide = output == "wide";
  view.color = UseColor(stdout);
  return RenderStatus(status, view);
}

// A small window shows fewer events: the verdict and the members, which come first, must not scroll away.
std::string RenderScreen(const v1::JobStatus& status, const std::string& output) {
  StatusViewOptions view;
  view.wide = output == "wide";
  view.color = UseColor(stdout);
  std::string text = RenderStatus(status, view);
  const auto fits = [&] { return WrappedRows(text, TerminalWidth()) < TerminalHeight(); };
  for (; view.max_events > 0 && !fits(); text = RenderStatus(status, view)) --view.max_events;
  for (; view.max_members > kFewestMembers && !fits(); text = RenderStatus(status, view)) --view.max_members;
  return text;
}

ExitCode Watch(const StatusOptions& options) {
  ExitCode last = kOk;
  bool seen = false;
  const bool redraw = IsTerminal(stdout) && options.output != "json";
  const auto show = [&](const v1::JobStatus& status) {
    seen = true;
    last = StatusExit(status);
    if (redraw) std::fputs("\033[H\033[2J", stdout);
    const std::string text = redraw ? RenderScreen(status, options.output) : Render(status, options.output);
    const bool written = Write(stdout, text);
    if (!redraw && options.output != "json") Write(stdout, "\n");
    return std::fflush(stdout) == 0 && written;
  };
  const auto watch = [&] {
    return WatchJobStatus(options.coordinator.address, options.coordinator.Tls(), absl::Milliseconds(500), show);
  };
  absl::Status result = watch();
  // Who watches a screen wants to see the agent come back; a program wants to know that it went.
  while (redraw && seen && absl::IsUnavailable(result)) {
    Fail(result);
    Tell("wsync", "watching until it answers again");
    for (seen = false; !seen && absl::IsUnavailable(result); result = watch()) absl::SleepFor(absl::Seconds(1));
  }
  return result.ok() ? last : Fail(result);
}

ExitCode RunStatus(const StatusOptions& options) {
  if (options.watch) return Watch(options);
  const auto status =
      GetJobStatus(options.coordinator.address, options.coordinator.Tls(), options.coordinator.Timeout());
  if (!status.ok()) return Fail(status.status());
  const std::string text = Render(*status, options.output);
  Write(stdout, text);
  return StatusExit(*status);
}

ExitCode RunVerify(const StatusOptions& options) {
  const auto status =
      GetJobStatus(options.coordinator.address, options.coordinator.Tls(), options.coordinator.Timeout());
  if (!status.ok()) return Fail(status.status());
  bool agree = false;
  std::string text;
  if (options.deep) {
    const auto reply = VerifyJob(options.coordinator.address, options.coordinator.Tls(), kDeepTimeout);
    if (!reply.ok()) return Fail(reply.status());
    text = RenderDeepVerify(*status, *reply, UseColor(stdout), &agree);
  } else {
    text = RenderVerify(*status, UseColor(stdout), &agree);
  }
  Write(stdout, text);
  if (!status->has_last_version()) {
    Tell("wsync", "nothing was published yet: there is nothing to compare");
  }
  return agree ? kOk : kDegraded;
}

}  // namespace

void AddStatus(CLI::App& app) {
  auto options = std::make_shared<StatusOptions>();
  CLI::App* command = AddCommand(app, "status", "Show a job: version, members, last sync, recent events",
                                 "  wsync status\n"
                                 "  wsync status -w                 redraw on every change\n"
                                 "  wsync status -o json | jq '.members[].serving.version'\n"
                                 "  wsync status -c trainer-0:7470 -o wide\n"
                                 "\nExit codes: 0 in sync, 3 degraded, 4 unreachable.\n",
                                 [options] { return RunStatus(*options); });
  options->coordinator.AddTo(*command);
  command->add_option("-o,--output", options->output, "table, wide or json")
      ->check(OneOf({"table", "wide", "json"}))
      ->capture_default_str();
  command->add_flag("-w,--watch", options->watch, "show it again on every change, until interrupted");
}

void AddVerify(CLI::App& app) {
  auto options = std::make_shared<StatusOptions>();
  CLI::App* command = AddCommand(
      app, "verify", "Compare the content digest of what every member serves",
      "  wsync verify\n"
      "  wsync verify -c trainer-0:7470 && start_evaluation\n"
      "  wsync verify --deep             digest the engines' memory again\n"
      "\n--deep reads what the engines hold now and changes nothing; an engine that turned its weights\n"
      "into another layout after it took them is not to be asked. With sink_mode in_place, engines that\n"
      "take slices of tensors (tensor parallel) answer that they cannot be checked; with staged, those whose\n"
      "staging copy a version that failed has overwritten can be asked again after the next version.\n"
      "\nExit codes: 0 all equal the committed version, 3 not all, 4 unreachable.\n",
      [options] { return RunVerify(*options); });
  options->coordinator.AddTo(*command);
  command->add_flag("--deep", options->deep, "compare what the engines' memory holds now, not what was applied");
}

}  // namespace wsync::cli
