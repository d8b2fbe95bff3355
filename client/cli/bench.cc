// wsync bench: what this machine reaches, each figure beside the ceiling or the target it is held to.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/model_shapes.h"
#include "client/cli/bench_encoder.h"
#include "client/cli/bench_sync.h"
#include "client/cli/command.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#ifdef WSYNC_HAVE_CUDA
#include "client/cli/bench_gpu.h"
#endif

namespace wsync::cli {
namespace {

constexpr int kHostSyncs = 5;
constexpr int kEncoderMegabytes = 512;
constexpr int kEncoderRepeats = 5;
constexpr int64_t kSmallTensors = 40000;  // of one 128x128 block each
constexpr int64_t kLargeTensors = 40;     // with the same bytes

struct BenchArguments {
  std::string backend = "host";
  std::string shapes = "qwen2.5-0.5b";
  std::string model;  // a directory; empty: random weights of those shapes
  std::string source_mode = "full";
  std::string sink_mode = "staged";
  int rollouts = 2;
  std::vector<int> devices = {0, 1};
  int syncs = 0;             // 0: the backend's default
  std::string bucket_bytes;  // empty: the configuration's default
  int nccl_max_ctas = 0;
  bool skip_small = false;
  std::string output = "table";
};

struct BenchResult {
  std::vector<std::pair<std::string, EncoderResult>> encoders;
  std::vector<SyncResult> syncs;  // the model, then (unless skipped) many small and few large tensors
};

std::vector<Tensor> Uniform(int64_t count, int64_t rows, int64_t cols) {
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < count; ++i) {
    tensors.push_back({absl::StrCat("model.layers.", i, ".mlp.up_proj.weight"), Dtype::kBF16, {rows, cols}});
  }
  return tensors;
}

absl::StatusOr<std::vector<Tensor>> TensorsOf(const BenchArguments& arguments) {
  if (arguments.model.empty()) return ModelTensors(arguments.shapes);
  const auto checkpoint = Checkpoint::Open(arguments.model);
  if (!checkpoint.ok()) return checkpoint.status();
  return (*checkpoint)->TensorList();
}

absl::StatusOr<BenchResult> Measure(const BenchArguments& arguments) {
  BenchResult result;
  const auto tensors = TensorsOf(arguments);
  if (!tensors.ok()) return tensors.status();
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    Print(stderr, "measuring the encoder, %s scales\n", std::string(GranularityName(granularity)).c_str());
    Recipe recipe;
    recipe.fp8 = true;
    recipe.granularity = granularity;
    result.encoders.emplace_back(GranularityName(granularity),
                                 MeasureEncoder(recipe, kEncoderMegabytes, kEncoderRepeats));
  }
  SyncOptions options;
  options.rollouts = arguments.rollouts;
  options.syncs = arguments.syncs > 0 ? arguments.syncs : kHostSyncs;
  options.trainer_flags = {{"transfer.source_mode", arguments.source_mode}};
  options.rollout_flags = {{"transfer.sink_mode", arguments.sink_mode}};
  const auto measure = [&](const std::string& name, std::vector<Tensor> what) {
    Print(stderr, "measuring %s of %s to %s\n", Counted(options.syncs, "sync").c_str(), name.c_str(),
          Counted(options.rollouts, "rollout").c_str());
    options.name = name;
    options.tensors = std::move(what);
    auto sync = MeasureSync(options);
    if (sync.ok()) result.syncs.push_back(*std::move(sync));
    return sync.status();
  };
  absl::Status status = measure(arguments.model.empty() ? arguments.shapes : arguments.model, *tensors);
  if (status.ok() && !arguments.skip_small) {
    status = measure("40 large tensors", Uniform(kLargeTensors, 10 * kBlockSize, 100 * kBlockSize));
    if (status.ok()) status = measure("40,000 one-block tensors", Uniform(kSmallTensors, kBlockSize, kBlockSize));
  }
  if (!status.ok()) return status;
  return result;
}

void PrintTable(const BenchResult& result) {
  const bool color = UseColor(stdout);
  Table encoders({"ENCODER, ONE CORE", "SIMD", "BF16 INPUT", "READ-2-WRITE-1 LOOP", "RATIO"});
  for (size_t c = 2; c <= 4; ++c) encoders.AlignRight(c);
  for (const auto& [name, e] : result.encoders) {
    encoders.Add({name + " scales", e.simd, FormatRate(e.encode_bytes_per_second),
                  FormatRate(e.ceiling_bytes_per_second), absl::StrFormat("%.0f%%", 100 * e.Ratio())});
  }
  Write(stdout, encoders.Render(color) + "\n");

  std::vector<std::string> header = {"SYNC (MEDIANS)"};
  for (const SyncResult& sync : result.syncs) header.push_back(sync.name);
  Table syncs(header);
  for (size_t c = 1; c < header.size(); ++c) syncs.AlignRight(c);
  const auto row = [&](const std::string& label, const std::function<std::string(const SyncResult&)>& cell) {
    std::vector<Cell> cells = {label};
    for (const SyncResult& sync : result.syncs) cells.push_back(cell(sync));
    syncs.Add(std::move(cells));
  };
  row("tensors (quantized)", [](const SyncResult& s) {
    return absl::StrCat(FormatCount(s.tensors), " (", FormatCount(s.quantized_tensors), ")");
  });
  row("weights", [](const SyncResult& s) { return FormatBytes(static_cast<double>(s.source_bytes)); });
  row("payload to each sink", [](const SyncResult& s) { return FormatBytes(static_cast<double>(s.payload_bytes)); });
  row("encode", [](const SyncResult& s) { return FormatMs(s.encode_ms); });
  row("transfer", [](const SyncResult& s) { return FormatMs(s.transfer_ms); });
  row("check, not hidden", [](const SyncResult& s) { return FormatMs(s.check_ms); });
  row("apply", [](const SyncResult& s) { return FormatMs(s.apply_ms); });
  row("engine pause", [](const SyncResult& s) { return FormatMs(s.pause_ms); });
  row("publish -> released", [](const SyncResult& s) { return FormatMs(s.released_ms); });
  row("publish -> staged", [](const SyncResult& s) { return FormatMs(s.staged_ms); });
  row("publish -> committed", [](const SyncResult& s) { return FormatMs(s.committed_ms); });
  row("control and planning", [](const SyncResult& s) { return FormatMs(s.control_ms); });
  row("delivered to each sink", [](const SyncResult& s) { return FormatRate(s.DeliveredBytesPerSecond()); });
  Write(stdout, syncs.Render(color) + "\n");
  if (result.syncs.size() == 3) {
    Print(stdout, "40,000 one-block tensors take %.2fx the time of the same bytes in 40 tensors\n\n",
          result.syncs[2].committed_ms / result.syncs[1].committed_ms);
  }

  Table memory({"PEAK MEMORY", "MEASURED", "PREDICTED", "RATIO"});
  for (size_t c = 1; c <= 3; ++c) memory.AlignRight(c);
  for (const AgentMemory& m : result.syncs.front().memory) {
    memory.Add({m.agent, FormatBytes(static_cast<double>(m.peak_bytes)),
                FormatBytes(static_cast<double>(m.predicted_bytes)),
                absl::StrFormat("%.2f", static_cast<double>(m.peak_bytes) / static_cast<double>(m.predicted_bytes))});
  }
  Write(stdout, memory.Render(color));
}

nlohmann::ordered_json ToJson(const SyncResult& s) {
  nlohmann::ordered_json json = {{"name", s.name},
                                 {"tensors", s.tensors},
                                 {"quantized_tensors", s.quantized_tensors},
                                 {"source_bytes", s.source_bytes},
                                 {"payload_bytes", s.payload_bytes},
                                 {"buckets", s.buckets},
                                 {"encode_ms", s.encode_ms},
                                 {"transfer_ms", s.transfer_ms},
                                 {"check_ms", s.check_ms},
                                 {"apply_ms", s.apply_ms},
                                 {"pause_ms", s.pause_ms},
                                 {"released_ms", s.released_ms},
                                 {"staged_ms", s.staged_ms},
                                 {"committed_ms", s.committed_ms},
                                 {"control_ms", s.control_ms},
                                 {"delivered_bytes_per_second", s.DeliveredBytesPerSecond()}};
  for (const AgentMemory& m : s.memory) {
    json["memory"].push_back(
        {{"agent", m.agent}, {"peak_bytes", m.peak_bytes}, {"predicted_bytes", m.predicted_bytes}});
  }
  return json;
}

void PrintJson(const BenchResult& result) {
  nlohmann::ordered_json json;
  for (const auto& [name, e] : result.encoders) {
    json["encoder"].push_back({{"granularity", name},
                               {"simd", e.simd},
                               {"encode_bytes_per_second", e.encode_bytes_per_second},
                               {"ceiling_bytes_per_second", e.ceiling_bytes_per_second}});
  }
  for (const SyncResult& sync : result.syncs) json["sync"].push_back(ToJson(sync));
  WriteJson(stdout, json.dump(2));
}

ExitCode RunOnGpus(const BenchArguments& arguments) {
#ifdef WSYNC_HAVE_CUDA
  GpuBenchOptions options;
  options.shapes = arguments.shapes;
  options.model = arguments.model;
  options.devices = arguments.devices;
  options.source_mode = arguments.source_mode;
  options.sink_mode = arguments.sink_mode;
  if (arguments.syncs > 0) options.syncs = arguments.syncs;
  if (!arguments.bucket_bytes.empty())
    options.trainer_flags.push_back({"transfer.bucket_bytes", arguments.bucket_bytes});
  for (ConfigFlags* flags : {&options.trainer_flags, &options.rollout_flags}) {
    flags->push_back({"transfer.nccl_max_ctas", absl::StrCat(arguments.nccl_max_ctas)});
  }
  const auto result = MeasureGpuSync(options);
  if (!result.ok()) return Fail(result.status());
  arguments.output == "json" ? PrintJson(*result) : PrintTable(*result);
  return kOk;
#else
  (void)arguments;
  return Fail(absl::FailedPreconditionError(
      "this wsync was built without CUDA and NCCL: build it where nvcc and nccl.h are found, or use --backend host"));
#endif
}

ExitCode Run(const BenchArguments& arguments) {
  if (arguments.backend == "cuda") return RunOnGpus(arguments);
  const auto result = Measure(arguments);
  if (!result.ok()) return Fail(result.status());
  if (arguments.output == "json") {
    PrintJson(*result);
  } else {
    PrintTable(*result);
  }
  return kOk;
}

}  // namespace

void AddBench(CLI::App& app) {
  auto arguments = std::make_shared<BenchArguments>();
  CLI::App* command = AddCommand(app, "bench", "Measure encoder and whole syncs on this machine, against ceilings",
                                 "  wsync bench\n"
                                 "  wsync bench --shapes qwen2.5-7b --rollouts 1 --skip-small\n"
                                 "  wsync bench --backend cuda --shapes qwen2.5-7b --sink-mode in_place\n"
                                 "  wsync bench --sink-mode in_place -o json > result.json\n",
                                 [arguments] { return Run(*arguments); });
  command->add_option("--backend", arguments->backend, "host: shared memory and gRPC; cuda: GPUs and NCCL")
      ->check(OneOf({"host", "cuda"}))
      ->capture_default_str();
  command->add_option("--shapes", arguments->shapes, "known model: " + absl::StrJoin(KnownModels(), ", "))
      ->check(KnownModel())
      ->type_name("NAME")
      ->capture_default_str();
  command->add_option("--model", arguments->model, "checkpoint directory, instead of random weights")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory);
  command->add_option("--rollouts", arguments->rollouts, "rollout agents (host)")
      ->check(WholeNumber(1, 64))
      ->capture_default_str();
  command->add_option("--devices", arguments->devices, "GPUs of the trainer agent and of each rollout agent (cuda)")
      ->delimiter(',')
      ->check(WholeNumber(0, 1023))
      ->capture_default_str();
  command->add_option("--syncs", arguments->syncs, "syncs to take medians of, after warming up; host 5, cuda 20")
      ->check(WholeNumber(1, 1000));
  command->add_option("--bucket-bytes", arguments->bucket_bytes, "wire bytes moved at once (cuda), such as 256MiB")
      ->transform(BucketBytes())
      ->type_name("SIZE");
  command->add_option("--nccl-max-ctas", arguments->nccl_max_ctas, "multiprocessors for NCCL (cuda); 0: its choice")
      ->check(WholeNumber(0, 64));
  command->add_option("--source-mode", arguments->source_mode, "full or ring")
      ->check(OneOf({"full", "ring"}))
      ->capture_default_str();
  command->add_option("--sink-mode", arguments->sink_mode, "staged or in_place")
      ->check(OneOf({"staged", "in_place"}))
      ->capture_default_str();
  command->add_flag("--skip-small", arguments->skip_small,
                    "leave out the comparison of many small and few large tensors");
  command->add_option("-o,--output", arguments->output, "table or json")
      ->check(OneOf({"table", "json"}))
      ->capture_default_str();
}

}  // namespace wsync::cli
