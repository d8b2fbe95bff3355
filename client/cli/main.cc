// wsync: what a person types to see and move weights.
#include <csignal>
#include <string>

#include "client/cli/command.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#include "server/rpc/version.h"
#ifdef WSYNC_HAVE_CUDA
#include "client/cli/bench_peers.h"
#endif

namespace {

constexpr char kExamples[] =
    "Exit codes: 0 done or in sync, 1 error, 2 usage, 3 degraded, 4 unreachable."
    "\nData goes to stdout, messages to stderr; NO_COLOR turns colour off."
    "\n\nExamples:"
    "\n  wsync status -w                         watch the job on this machine"
    "\n  wsync plan --model DIR                  what would be quantized, and why not the rest"
    "\n  wsync quantize DIR OUT                  an FP8 checkpoint, no daemon needed"
    "\n  wsync publish --model DIR --version 7   send a checkpoint to every rollout"
    "\n  wsync demo                              the whole thing on one machine\n";

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // `wsync status | head` ends by a failed write, not by a signal
  CLI::App app("wsync carries a model's weights, as FP8, from trainers to rollouts", "wsync");
  app.set_version_flag("--version", std::string(wsync::kSoftware));
  app.footer(kExamples);
  app.require_subcommand(1);
  wsync::cli::AddStatus(app);
  wsync::cli::AddVerify(app);
  wsync::cli::AddPublish(app);
  wsync::cli::AddExport(app);
  wsync::cli::AddQuantize(app);
  wsync::cli::AddPlan(app);
  wsync::cli::AddUnfence(app);
  wsync::cli::AddConfig(app);
  wsync::cli::AddBench(app);
  wsync::cli::AddDoctor(app);
  wsync::cli::AddDemo(app);
#ifdef WSYNC_HAVE_CUDA
  wsync::cli::AddBenchPeers(app);
#endif
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    const std::string text = argc > 1 ? wsync::cli::UsageText(app, e) : app.help();
    wsync::cli::Write(stderr, text + "\n");
    return wsync::cli::kUsage;
  }
  return wsync::cli::LastExit();
}
