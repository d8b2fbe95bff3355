// wsync export: attaches to a rollout agent as an engine would, and writes what it gets as an FP8 checkpoint.
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "client/checkpoint/quantization_config.h"
#include "client/cli/command.h"
#include "client/cli/engine_memory.h"
#include "client/cli/progress_bar.h"
#include "client/cli/terminal.h"
#include "client/local/engine_client.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

struct ExportArguments {
  std::string out;
  std::string like;
  std::string socket = "unix:///run/wsync/rollout.sock";
  double timeout_s = 60;
  bool overwrite = false;
};

absl::StatusOr<CheckpointOptions> WriterOptions(const ExportArguments& arguments, const EngineOutputs& outputs,
                                                const std::vector<Tensor>& tensors) {
  CheckpointOptions options;
  options.overwrite = arguments.overwrite;
  OrderedJson config = OrderedJson::object();
  if (!arguments.like.empty()) {
    const auto like = Checkpoint::Open(arguments.like);
    if (!like.ok()) return like.status();
    options.copy_from = (*like)->directory();
    if ((*like)->config()) config = *(*like)->config();
  }
  if (outputs.rules.fp8) {
    config = WithQuantizationConfig(std::move(config), outputs.rules.granularity,
                                    outputs.rules.scale_format == ScaleFormat::kPow2, tensors);
  }
  options.config = std::move(config);
  return options;
}

absl::Status WriteCheckpoint(const ExportArguments& arguments, const EngineOutputs& outputs, const EngineMemory& memory,
                             std::vector<std::string>* notes) {
  std::vector<Tensor> tensors;
  for (const EngineOutput& output : outputs.outputs) tensors.push_back(output.tensor);
  const auto options = WriterOptions(arguments, outputs, tensors);
  if (!options.ok()) return options.status();
  const auto writer = CheckpointWriter::Create(arguments.out, tensors, *options);
  if (!writer.ok()) return writer.status();
  ProgressBar bar("writing");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const absl::Status written = (*writer)->Write(i, {memory.Data(i), static_cast<size_t>(BytesOf(tensors[i]))});
    if (!written.ok()) return written;
    bar.Update(static_cast<double>(i + 1) / tensors.size(), tensors[i].name);
  }
  const absl::Status finished = (*writer)->Finish();
  *notes = (*writer)->notes();
  return finished;
}

ExitCode Run(const ExportArguments& arguments) {
  const absl::Duration timeout = absl::Seconds(arguments.timeout_s);
  auto engine = EngineClient::Connect(arguments.socket, absl::Seconds(5));
  if (!engine.ok()) return Fail(engine.status());
  const auto outputs = (*engine)->GetOutputs(timeout);
  if (!outputs.ok()) return Fail(outputs.status());
  auto memory = EngineMemory::Create(*outputs);
  if (!memory.ok()) return Fail(memory.status());
  const auto attached =
      (*engine)->Attach("wsync export", {(*memory)->handle()}, (*memory)->Destinations(), false, timeout);
  if (!attached.ok()) return Fail(attached.status());
  (*memory)->Unlink();

  std::fprintf(stderr, "attached; waiting up to %s for a committed version\n",
               FormatMs(arguments.timeout_s * 1e3).c_str());
  const auto applied = WaitForApplied(**engine, 1, timeout);
  if (!applied.ok()) return Fail(applied.status());
  const absl::Status detached = (*engine)->Detach();
  if (!detached.ok()) std::fprintf(stderr, "note: detach: %s\n", std::string(detached.message()).c_str());

  std::vector<std::string> notes;
  const absl::Status written = WriteCheckpoint(arguments, *outputs, **memory, &notes);
  if (!written.ok()) return Fail(written);
  for (const std::string& note : notes) std::fprintf(stderr, "note: %s\n", note.c_str());
  std::printf("%s: version %lu, %s tensors, %s\n", arguments.out.c_str(), applied->version(),
              FormatCount(outputs->outputs.size()).c_str(), FormatBytes(outputs->payload_bytes).c_str());
  return kOk;
}

}  // namespace

void AddExport(CLI::App& app) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command = AddCommand(app, "export", "Write what a rollout agent serves as an FP8 checkpoint",
                                 "  wsync export --out Qwen2.5-7B-FP8 --like Qwen2.5-7B\n"
                                 "  wsync export --out snapshot --socket unix:///tmp/rollout.sock --timeout 300\n"
                                 "\nAttaches as the agent's engine, so it needs an agent that has none.\n",
                                 [arguments] { return Run(*arguments); });
  command->add_option("--out", arguments->out, "directory to write; must not hold anything yet")->required();
  command->add_option("--like", arguments->like, "checkpoint whose config.json and tokenizer files are copied")
      ->type_name("DIR");
  command->add_option("-s,--socket", arguments->socket, "the rollout agent's local_socket")
      ->envname("WSYNC_LOCAL_SOCKET")
      ->capture_default_str();
  command->add_option("--timeout", arguments->timeout_s, "seconds to wait for a plan, and for a version")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  command->add_flag("--overwrite", arguments->overwrite, "replace an older checkpoint at --out");
}

}  // namespace wsync::cli
