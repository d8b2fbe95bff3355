#include "client/cli/bench_gpu.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/cli/median.h"
#include "client/cli/peak_sampler.h"
#include "client/cli/peer_process.h"
#include "client/cli/terminal.h"
#include "server/backend/cuda/backend.h"
#include "server/backend/cuda/probe.h"
#include "server/core/clock.h"
#include "server/core/plan.h"

namespace wsync::cli {
namespace {

using nlohmann::json;

constexpr int kWarmUps = 3;                            // the first opens the session, the others fill caches and pools
constexpr absl::Duration kSetUp = absl::Minutes(5);    // to fill 60 GB of weights
constexpr absl::Duration kOneSync = absl::Minutes(2);  // above every deadline of the agents
constexpr int64_t kMib = 1 << 20;

struct Samples {
  std::vector<double> quantize, wire, verify, apply, released, staged, applied, committed, control, pause;
};

using Probes = std::vector<std::unique_ptr<cuda::Probe>>;  // of each agent's GPU

struct Peers {
  std::unique_ptr<PeerProcess> feeder;
  std::vector<std::unique_ptr<PeerProcess>> engines;
};

absl::Status StartPeers(const GpuBenchOptions& options, const LocalCluster& cluster, Peers* peers,
                        GpuBenchResult* result) {
  auto feeder = PeerProcess::Start(
      "the feeder", {"bench-feeder", "--device", absl::StrCat(options.devices[0]), "--socket", cluster.trainer_socket(),
                     "--shapes", options.shapes, "--model", options.model});
  if (!feeder.ok()) return feeder.status();
  peers->feeder = *std::move(feeder);
  for (size_t i = 1; i < options.devices.size(); ++i) {
    auto engine = PeerProcess::Start(absl::StrCat("engine ", i - 1),
                                     {"bench-engine", "--device", absl::StrCat(options.devices[i]), "--socket",
                                      cluster.rollout_socket(static_cast<int>(i) - 1)});
    if (!engine.ok()) return engine.status();
    peers->engines.push_back(*std::move(engine));
  }
  const auto registered = peers->feeder->Hear(kSetUp);
  if (!registered.ok()) return registered.status();
  const json& r = registered->at("registered");
  result->tensors = r.at("tensors");
  result->quantized_tensors = r.at("quantized_tensors");
  result->source_bytes = r.at("source_bytes");
  result->payload_bytes = r.at("payload_bytes");
  result->wire_bytes = r.at("wire_bytes");
  result->buckets = r.at("buckets");
  result->register_ms = r.at("ms");
  for (const auto& engine : peers->engines) {
    const auto attached = engine->Hear(kSetUp);
    if (!attached.ok()) return attached.status();
    result->attach_ms = std::max(result->attach_ms, attached->at("attached").at("ms").get<double>());
  }
  return cluster
      .WaitFor(
          [&](const v1::JobStatus& status) {
            return std::count_if(status.members().begin(), status.members().end(), [](const v1::MemberStatus& m) {
                     return m.role() == "rollout" && m.state() == "ready";
                   }) == static_cast<int64_t>(peers->engines.size());
          },
          kSetUp, "all engines attached")
      .status();
}

absl::Status SyncOnce(Peers& peers, uint64_t version, bool measured, Samples* samples) {
  if (absl::Status status = peers.feeder->Order(absl::StrCat("publish ", version)); !status.ok()) return status;
  const auto committed = peers.feeder->Hear(kOneSync);
  if (!committed.ok()) return committed.status();
  double wire = 0, verify = 0, apply = 0, slowest = 0, pause = 0, applied_at = 0;
  const json& report = committed->at("report");
  for (const json& replica : report.at("replicas")) {
    if (!replica.at("applied").get<bool>()) {
      return absl::AbortedError(
          absl::StrCat(replica.value("replica", ""), " was left out: ", replica.value("reason", "")));
    }
    const json& timings = replica.at("timings");
    const double stages[] = {timings.at("transfer_ms"), timings.at("check_ms"), timings.at("apply_ms")};
    wire = std::max(wire, stages[0]);
    verify = std::max(verify, stages[1]);
    apply = std::max(apply, stages[2]);
    slowest = std::max(slowest, stages[0] + stages[1] + stages[2]);
  }
  for (const auto& engine : peers.engines) {
    const auto applied = engine->Hear(kOneSync);
    if (!applied.ok()) return applied.status();
    if (applied->at("applied") != version) return absl::InternalError("an engine took another version than the last");
    pause = std::max(pause, applied->at("pause_ms").get<double>());
    applied_at = std::max(applied_at, applied->at("at_ms").get<double>());
  }
  if (!measured) return absl::OkStatus();
  samples->quantize.push_back(report.at("encode_ms"));
  samples->wire.push_back(wire);
  samples->verify.push_back(verify);
  samples->apply.push_back(apply);
  samples->pause.push_back(pause);
  samples->released.push_back(committed->at("released_ms"));
  samples->staged.push_back(report.at("staged_ms"));
  samples->applied.push_back(applied_at - committed->at("begun_at_ms").get<double>());
  samples->committed.push_back(committed->at("committed_ms"));
  samples->control.push_back(samples->committed.back() - slowest);
  return absl::OkStatus();
}

// What nvidia-smi says that a process holds on its GPU; -1 when it does not know the process.
int64_t DeviceBytesOf(pid_t pid) {
  std::FILE* pipe = popen(  // which waits for a driver that hangs
      "timeout 10 nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader,nounits 2>&1", "r");
  if (pipe == nullptr) return -1;
  int64_t bytes = -1;
  char line[256];
  while (std::fgets(line, sizeof(line), pipe) != nullptr) {
    const std::pair<std::string, std::string> fields = absl::StrSplit(line, absl::MaxSplits(", ", 1));
    int64_t its_pid = 0, mib = 0;
    if (absl::SimpleAtoi(fields.first, &its_pid) && absl::SimpleAtoi(fields.second, &mib) && its_pid == pid) {
      bytes = std::max<int64_t>(bytes, 0) + mib * kMib;
    }
  }
  pclose(pipe);
  return bytes;
}

absl::StatusOr<Probes> OpenProbes(const std::vector<int>& devices) {
  Probes probes;
  for (const int device : devices) {
    auto probe = cuda::Probe::Open(device);
    if (!probe.ok()) return probe.status();
    probes.push_back(*std::move(probe));
  }
  return probes;
}

// 0 where it cannot be told.
int64_t UsedBytes(cuda::Probe& probe) { return probe.UsedBytes().value_or(0); }

void TellMemory(const LocalCluster& cluster, const Probes& probes, const std::vector<int64_t>& peaks,
                GpuBenchResult* result) {
  for (size_t i = 0; i < probes.size(); ++i) {
    const int rollout = static_cast<int>(i) - 1;
    GpuBenchResult::AgentMemory& memory = result->memory.emplace_back();
    memory.agent = i == 0 ? "wsync-trainer" : absl::StrCat("wsync-rollout ", rollout);
    memory.device_bytes = DeviceBytesOf(i == 0 ? cluster.trainer_pid() : cluster.rollout_pid(rollout));
    memory.gpu_peak_bytes = peaks[i];
    memory.gpu_rise_bytes = std::max<int64_t>(0, peaks[i] - UsedBytes(*probes[i]));
  }
}

absl::Status RunSyncs(const GpuBenchOptions& options, const Probes& probes, GpuBenchResult* result) {
  LocalCluster::Options cluster_options;
  cluster_options.rollouts = static_cast<int>(options.devices.size()) - 1;
  cluster_options.devices = options.devices;
  cluster_options.trainer_flags = options.trainer_flags;
  cluster_options.trainer_flags.emplace_back("transfer.source_mode", options.source_mode);
  cluster_options.rollout_flags = options.rollout_flags;
  cluster_options.rollout_flags.emplace_back("transfer.sink_mode", options.sink_mode);
  const auto cluster = LocalCluster::Start(std::move(cluster_options));
  if (!cluster.ok()) return cluster.status();
  Peers peers;
  absl::Status status = StartPeers(options, **cluster, &peers, result);
  Samples samples;
  PeakSampler sampler(probes.size(), [&probes](size_t i) { return UsedBytes(*probes[i]); });
  for (int i = 0; status.ok() && i < kWarmUps + options.syncs; ++i) {
    status = SyncOnce(peers, static_cast<uint64_t>(i) + 1, i >= kWarmUps, &samples);
  }
  if (!status.ok()) {
    (*cluster)->Keep();
    return absl::Status(status.code(), absl::StrCat(std::string(status.message()), "; the agents' logs are in ",
                                                    (*cluster)->directory()));
  }
  TellMemory(**cluster, probes, sampler.Stop(), result);
  result->quantize_ms = Median(samples.quantize);
  result->wire_ms = Median(samples.wire);
  result->verify_ms = Median(samples.verify);
  result->apply_ms = Median(samples.apply);
  result->pause_ms = Median(samples.pause);
  result->released_ms = Median(samples.released);
  result->staged_ms = Median(samples.staged);
  result->applied_ms = Median(samples.applied);
  result->committed_ms = Median(samples.committed);
  result->control_ms = Median(samples.control);
  return absl::OkStatus();
}

}  // namespace

double GpuBenchResult::QuantizeRatio() const {
  return static_cast<double>(source_bytes + payload_bytes) / (quantize_ms / 1e3) / ceilings.copy_bytes_per_second;
}

absl::StatusOr<GpuBenchResult> MeasureGpuSync(const GpuBenchOptions& options) {
  const int there = cuda::DeviceCount();
  if (options.devices.size() < 2) {
    return absl::InvalidArgumentError("a sync between GPUs takes at least two: NCCL takes one rank per GPU");
  }
  if (std::set<int>(options.devices.begin(), options.devices.end()).size() < options.devices.size()) {
    return absl::InvalidArgumentError("--devices names a GPU twice: NCCL takes one rank per GPU");
  }
  for (const int device : options.devices) {
    if (device < 0 || device >= there) {
      return absl::FailedPreconditionError(absl::StrCat("no GPU ", device, ": this process sees ", there,
                                                        "; choose with --devices, or measure --backend host"));
    }
  }
  GpuBenchResult result;
  result.options = options;
  {
    const absl::StatusOr<Probes> probes = OpenProbes(options.devices);
    if (!probes.ok()) return probes.status();
    for (const auto& probe : *probes) result.device_names.push_back(probe->device_name());
    if (absl::Status status = RunSyncs(options, *probes, &result); !status.ok()) return status;
  }
  auto ceilings = MeasureCeilings(options.devices, result.payload_bytes, result.wire_bytes);
  if (!ceilings.ok()) return ceilings.status();
  result.ceilings = *std::move(ceilings);
  return result;
}

void PrintTable(const GpuBenchResult& r) {
  const bool color = UseColor(stdout);
  Print(stdout, "%s, %s source, %s sinks, %d syncs\n",
        (r.options.model.empty() ? r.options.shapes : r.options.model).c_str(), r.options.source_mode.c_str(),
        r.options.sink_mode.c_str(), r.options.syncs);
  for (const std::string& name : r.device_names) Print(stdout, "  %s\n", name.c_str());
  Print(stdout, "  %s (%s quantized), %s -> %s payload, %s on the wire in %s\n\n", Counted(r.tensors, "tensor").c_str(),
        FormatCount(r.quantized_tensors).c_str(), FormatBytes(static_cast<double>(r.source_bytes)).c_str(),
        FormatBytes(static_cast<double>(r.payload_bytes)).c_str(),
        FormatBytes(static_cast<double>(r.wire_bytes)).c_str(), Counted(r.buckets, "bucket").c_str());
  Table stages({"STAGE (MEDIANS)", "TIME", "CEILING, SAME RUN", "TIME", "RATIO"});
  for (const size_t column : {1, 3, 4}) stages.AlignRight(column);
  const auto ms = [](double value) { return absl::StrFormat("%.2f ms", value); };
  const auto ratio = [](double value, double ceiling) { return absl::StrFormat("%.2f", value / ceiling); };
  const GpuCeilings& c = r.ceilings;
  const double copy_ms = static_cast<double>(r.source_bytes + r.payload_bytes) / c.copy_bytes_per_second * 1e3;
  stages.Add(
      {"quantize", ms(r.quantize_ms), "copying as many bytes on the GPU", ms(copy_ms), ratio(r.quantize_ms, copy_ms)});
  stages.Add({"wire", ms(r.wire_ms), "one ncclBroadcast", ms(c.broadcast_ms), ratio(r.wire_ms, c.broadcast_ms)});
  stages.Add({"verify, not hidden", ms(r.verify_ms), "", "", ""});
  stages.Add({"apply", ms(r.apply_ms), "copying the payload on the GPU", ms(c.payload_copy_ms),
              r.apply_ms > 0 ? ratio(r.apply_ms, c.payload_copy_ms) : ""});
  stages.Add({"engine pause", ms(r.pause_ms), "copying the payload on the GPU", ms(c.payload_copy_ms),
              ratio(r.pause_ms, c.payload_copy_ms)});
  stages.Add({"publish -> released", ms(r.released_ms), "copying as many bytes on the GPU", ms(copy_ms),
              ratio(r.released_ms, copy_ms)});
  stages.Add({"publish -> staged", ms(r.staged_ms), "", "", ""});
  stages.Add({"publish -> applied", ms(r.applied_ms), "one ncclBroadcast", ms(c.broadcast_ms),
              ratio(r.applied_ms, c.broadcast_ms)});
  stages.Add({"publish -> committed", ms(r.committed_ms), "one ncclBroadcast", ms(c.broadcast_ms),
              ratio(r.committed_ms, c.broadcast_ms)});
  stages.Add({"control and planning", ms(r.control_ms), "", "", ""});
  Write(stdout, stages.Render(color) + "\n");
  Print(stdout, "device copy %s (read + written), quantizer %.0f%% of it; ncclBroadcast %s; register %s, attach %s\n\n",
        FormatRate(c.copy_bytes_per_second).c_str(), 100 * r.QuantizeRatio(),
        FormatRate(static_cast<double>(r.wire_bytes) / c.broadcast_ms * 1e3).c_str(), FormatMs(r.register_ms).c_str(),
        FormatMs(r.attach_ms).c_str());
  Table memory({"GPU MEMORY", "HELD AFTERWARDS", "PEAK, SAMPLED", "PEAK OF THE WHOLE GPU"});
  for (const size_t column : {1, 2, 3}) memory.AlignRight(column);
  const auto bytes = [](int64_t n) { return n < 0 ? "unknown" : FormatBytes(static_cast<double>(n)); };
  for (const auto& m : r.memory) {
    memory.Add({m.agent, bytes(m.device_bytes), bytes(m.peak_bytes()), bytes(m.gpu_peak_bytes)});
  }
  Write(stdout, memory.Render(color));
}

void PrintJson(const GpuBenchResult& r) {
  const GpuCeilings& c = r.ceilings;
  nlohmann::ordered_json out = {{"model", r.options.model.empty() ? r.options.shapes : r.options.model},
                                {"source_mode", r.options.source_mode},
                                {"sink_mode", r.options.sink_mode},
                                {"syncs", r.options.syncs},
                                {"devices", r.device_names},
                                {"tensors", r.tensors},
                                {"quantized_tensors", r.quantized_tensors},
                                {"buckets", r.buckets},
                                {"source_bytes", r.source_bytes},
                                {"payload_bytes", r.payload_bytes},
                                {"wire_bytes", r.wire_bytes},
                                {"register_ms", r.register_ms},
                                {"attach_ms", r.attach_ms},
                                {"quantize_ms", r.quantize_ms},
                                {"wire_ms", r.wire_ms},
                                {"verify_ms", r.verify_ms},
                                {"apply_ms", r.apply_ms},
                                {"pause_ms", r.pause_ms},
                                {"released_ms", r.released_ms},
                                {"staged_ms", r.staged_ms},
                                {"applied_ms", r.applied_ms},
                                {"committed_ms", r.committed_ms},
                                {"control_ms", r.control_ms},
                                {"copy_bytes_per_second", c.copy_bytes_per_second},
                                {"payload_copy_ms", c.payload_copy_ms},
                                {"broadcast_ms", c.broadcast_ms},
                                {"quantize_ratio", r.QuantizeRatio()},
                                {"applied_ratio", r.applied_ms / c.broadcast_ms},
                                {"committed_ratio", r.committed_ms / c.broadcast_ms}};
  for (const auto& m : r.memory) {
    const auto known = [](int64_t bytes) { return bytes < 0 ? json(nullptr) : json(bytes); };
    out["memory"].push_back({{"agent", m.agent},
                             {"device_bytes", known(m.device_bytes)},
                             {"peak_bytes", known(m.peak_bytes())},
                             {"gpu_peak_bytes", m.gpu_peak_bytes}});
  }
  WriteJson(stdout, out.dump(2));
}

}  // namespace wsync::cli
