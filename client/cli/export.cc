// wsync export: attaches to a rollout agent as an engine would, and writes what it gets as an FP8 checkpoint.
#include "client/cli/export.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "client/checkpoint/quantization_config.h"
#include "client/checkpoint/source_scheme.h"
#include "client/cli/command.h"
#include "client/cli/engine_memory.h"
#include "client/cli/progress_bar.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#include "client/local/engine_client.h"

namespace wsync::cli {
namespace {

// All that can be known before there is a version: what is wrong with a path should not show after an hour of waiting.
absl::StatusOr<CheckpointOptions> WriterOptions(const ExportRequest& arguments) {
  CheckpointOptions options;
  options.overwrite = arguments.overwrite;
  options.config = OrderedJson::object();
  if (!arguments.like.empty()) {
    const auto like = Checkpoint::Open(arguments.like);
    if (!like.ok()) return like.status();
    options.copy_from = (*like)->directory();
    if ((*like)->config()) options.config = *(*like)->config();
  }
  if (absl::Status status = CheckpointWriter::CheckTarget(arguments.out, options); !status.ok()) return status;
  return options;
}

bool DescribesNoFp8(const OrderedJson& config, const std::vector<Tensor>& tensors) {
  return SourceSchemes(config).empty() && std::any_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
           return tensor.dtype == Dtype::kF8E4M3;
         });
}

absl::Status WriteCheckpoint(const std::string& out, CheckpointOptions options, const EngineOutputs& outputs,
                             const EngineMemory& memory, std::vector<std::string>* notes) {
  std::vector<Tensor> tensors;
  std::vector<WrittenTensor> written;
  for (size_t i = 0; i < outputs.outputs.size(); ++i) {
    const EngineOutput& output = outputs.outputs[i];
    tensors.push_back(output.tensor);
    written.push_back({output.tensor, output.quantized || output.is_scale, memory.Data(i)});
  }
  options.config = WrittenConfig(options.config, outputs.rules.granularity, outputs.rules.scale_format, written);
  const auto writer = CheckpointWriter::Create(out, tensors, options);
  if (!writer.ok()) return writer.status();
  ProgressBar bar("writing");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const absl::Status status = (*writer)->Write(i, {memory.Data(i), static_cast<size_t>(BytesOf(tensors[i]))});
    if (!status.ok()) return status;
    bar.Update(static_cast<double>(i + 1) / tensors.size(), tensors[i].name);
  }
  const absl::Status finished = (*writer)->Finish();
  *notes = (*writer)->notes();
  if (DescribesNoFp8(*options.config, tensors)) {
    notes->push_back(
        "the trainer's weights were FP8 before, and the config.json that was written does not say so: give "
        "their own checkpoint as --like");
  }
  return finished;
}

ExitCode Run(const ExportRequest& request) {
  const auto report = ExportCheckpoint(request);
  if (!report.ok()) return Fail(report.status());
  for (const std::string& note : report->notes) Tell("note", note);
  Print(stdout, "%s: version %lu, %s, %s\n", request.out.c_str(), report->version,
        Counted(report->tensors, "tensor").c_str(), FormatBytes(report->bytes).c_str());
  return kOk;
}

}  // namespace

absl::StatusOr<ExportReport> ExportCheckpoint(const ExportRequest& request) {
  const auto options = WriterOptions(request);
  if (!options.ok()) return options.status();
  auto engine = EngineClient::Connect(request.socket, absl::Seconds(5));
  if (!engine.ok()) return engine.status();
  ProgressBar bar("export");
  bar.Wait("a trainer to register its weights");
  const auto outputs = (*engine)->GetOutputs(request.timeout);
  if (!outputs.ok()) return outputs.status();
  auto memory = EngineMemory::Create(*outputs);
  if (!memory.ok()) return memory.status();
  const auto attached =
      (*engine)->Attach("wsync export", {(*memory)->handle()}, (*memory)->Destinations(), false, request.timeout);
  if (!attached.ok()) return attached.status();
  bar.Wait("a version to be published");
  const auto applied = WaitForApplied(**engine, 1, request.timeout);
  bar.Clear();
  if (!applied.ok()) return applied.status();
  const absl::Status detached = (*engine)->Detach();  // before the writing: the agent is free for the next engine

  ExportReport report;
  report.version = applied->version();
  report.tensors = static_cast<int64_t>(outputs->outputs.size());
  report.bytes = outputs->payload_bytes;
  const absl::Status written = WriteCheckpoint(request.out, *options, *outputs, **memory, &report.notes);
  if (!written.ok()) return written;
  if (!detached.ok()) report.notes.push_back(absl::StrCat("detaching failed: ", detached.message()));
  return report;
}

void AddExport(CLI::App& app) {
  auto arguments = std::make_shared<ExportRequest>();
  auto timeout_s = std::make_shared<double>(60);
  CLI::App* command = AddCommand(app, "export", "Write what a rollout agent serves as an FP8 checkpoint",
                                 "  wsync export --out Qwen2.5-7B-FP8 --like Qwen2.5-7B\n"
                                 "  wsync export --out snapshot --socket unix:///tmp/rollout.sock --timeout 300\n"
                                 "\nAttaches as the agent's engine, so it needs an agent that has none.\n",
                                 [arguments, timeout_s] {
                                   arguments->timeout = absl::Seconds(*timeout_s);
                                   return Run(*arguments);
                                 });
  command->add_option("--out", arguments->out, "directory to write; must not hold anything yet")->required();
  command
      ->add_option("--like", arguments->like,
                   "checkpoint on this host whose config.json and tokenizer files are copied")
      ->type_name("DIR");
  command->add_option("-s,--socket", arguments->socket, "the rollout agent's local_socket")
      ->envname("WSYNC_LOCAL_SOCKET")
      ->check(LocalSocket())
      ->capture_default_str();
  command->add_option("--timeout", *timeout_s, "seconds to wait for a plan, and for a version")
      ->check(Seconds(0.1, 86400))
      ->capture_default_str();
  command->add_flag("--overwrite", arguments->overwrite, "replace an older checkpoint at --out");
}

}  // namespace wsync::cli
