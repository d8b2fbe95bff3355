// wsync quantize: an FP8 checkpoint from a BF16 one, without any daemon.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/offline_quantizer.h"
#include "client/cli/command.h"
#include "client/cli/progress_bar.h"
#include "client/cli/recipe_options.h"
#include "client/cli/terminal.h"

namespace wsync::cli {
namespace {

struct QuantizeArguments {
  std::string in, out;
  RecipeOptions recipe;
  int threads = 0;
  bool overwrite = false;
};

std::atomic<bool> interrupted{false};

ExitCode Run(const QuantizeArguments& arguments) {
  const auto checkpoint = Checkpoint::Open(arguments.in);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::signal(SIGTERM, [](int) { interrupted = true; });
  ProgressBar bar("quantizing");
  QuantizeOptions options;
  options.rules = arguments.recipe.Rules();
  options.threads = arguments.threads;
  options.overwrite = arguments.overwrite;
  options.cancel = &interrupted;
  options.progress = [&](const QuantizeProgress& p) {
    const double seconds = absl::ToDoubleSeconds(p.elapsed);
    bar.Update(p.bytes_total == 0 ? 1 : static_cast<double>(p.bytes_done) / p.bytes_total,
               seconds > 0 ? FormatRate(p.bytes_done / seconds) : "");
  };
  const auto report = QuantizeCheckpoint(**checkpoint, arguments.out, options);
  bar.Clear();
  if (!report.ok()) return Fail(report.status());
  for (const std::string& note : report->notes) Tell("note", note);
  const double seconds = absl::ToDoubleSeconds(report->elapsed);
  Print(stdout, "%s: %s, %s quantized, %s -> %s in %s (%s)\n", arguments.out.c_str(),
        Counted(report->tensors, "tensor").c_str(), FormatCount(report->quantized_tensors).c_str(),
        FormatBytes(report->bytes_in).c_str(), FormatBytes(report->bytes_out).c_str(), FormatMs(seconds * 1e3).c_str(),
        FormatRate(report->bytes_in / std::max(seconds, 1e-9)).c_str());
  return kOk;
}

}  // namespace

void AddQuantize(CLI::App& app) {
  auto arguments = std::make_shared<QuantizeArguments>();
  CLI::App* command =
      AddCommand(app, "quantize", "Write an FP8 copy of a checkpoint (offline, no daemon)",
                 "  wsync quantize Qwen2.5-7B Qwen2.5-7B-FP8\n"
                 "  wsync quantize in out --granularity channel            for compressed-tensors loaders\n"
                 "  wsync quantize in out --preset deepgemm --scale pow2   for UE8M0 backends\n"
                 "  wsync quantize in out --exclude '*.layers.0.*'         keep the first layer in BF16\n",
                 [arguments] { return Run(*arguments); });
  command->add_option("IN", arguments->in, "checkpoint directory, or one .safetensors file")->required();
  command->add_option("OUT", arguments->out, "directory to write; must not hold anything yet")->required();
  arguments->recipe.AddTo(*command);
  command->add_option("--threads", arguments->threads, "encoder threads; 0: one per core")
      ->check(WholeNumber(0, 1024))
      ->capture_default_str();
  command->add_flag("--overwrite", arguments->overwrite, "replace an older checkpoint at OUT");
}

}  // namespace wsync::cli
