#include "client/cli/bench_sync.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/demo_model.h"
#include "client/cli/engine_thread.h"
#include "client/cli/median.h"
#include "client/cli/peak_sampler.h"
#include "client/cli/shared_model.h"
#include "client/local/trainer_client.h"
#include "server/core/clock.h"
#include "server/core/memory_estimate.h"

namespace wsync::cli {
namespace {

constexpr absl::Duration kReady = absl::Seconds(120);
constexpr int64_t kPerturbOneIn = 50;

double MedianOf(const std::vector<v1::VersionReport>& reports,
                const std::function<double(const v1::VersionReport&)>& value) {
  std::vector<double> values;
  for (const v1::VersionReport& report : reports) values.push_back(value(report));
  return Median(std::move(values));
}

double Slowest(const v1::VersionReport& report, const std::function<double(const v1::StageTimings&)>& stage) {
  double slowest = 0;
  for (const v1::ReplicaOutcome& replica : report.replicas()) slowest = std::max(slowest, stage(replica.timings()));
  return slowest;
}

double AllStages(const v1::StageTimings& timings) {
  return timings.transfer_ms() + timings.check_ms() + timings.apply_ms();
}

std::string FlagOr(const ConfigFlags& flags, const std::string& key, const std::string& fallback) {
  for (const auto& [name, value] : flags) {
    if (name == key) return value;
  }
  return fallback;
}

absl::Status Predict(const SyncOptions& options, SyncResult* result) {
  auto catalog = Catalog::Create(options.tensors);
  if (!catalog.ok()) return catalog.status();
  const auto plan = Plan::Create(std::make_shared<Catalog>(*std::move(catalog)), RecipeRules(), options.bucket_bytes);
  if (!plan.ok()) return plan.status();
  const bool ring = FlagOr(options.trainer_flags, "transfer.source_mode", "full") == "ring";
  const bool in_place = FlagOr(options.rollout_flags, "transfer.sink_mode", "staged") == "in_place";
  constexpr int64_t kSlots = 3;  // the configuration's default
  result->memory.push_back(
      {"wsync-trainer", 0, EstimateSource(**plan, ring ? SourceMode::kRing : SourceMode::kFull, kSlots).total});
  for (int i = 0; i < options.rollouts; ++i) {
    result->memory.push_back({absl::StrCat("wsync-rollout ", i), 0,
                              EstimateSink(**plan, in_place ? SinkMode::kInPlace : SinkMode::kStaged, kSlots).total});
  }
  return absl::OkStatus();
}

absl::Status WaitUntilReady(const LocalCluster& cluster, int rollouts) {
  return cluster
      .WaitFor(
          [&](const v1::JobStatus& status) {
            return std::count_if(status.members().begin(), status.members().end(), [](const v1::MemberStatus& m) {
                     return m.role() == "rollout" && m.state() == "ready";
                   }) == rollouts;
          },
          kReady, "all rollouts attached")
      .status();
}

absl::StatusOr<std::vector<v1::VersionReport>> PublishAll(TrainerClient& trainer, SharedModel& model, int syncs,
                                                          std::vector<double>* control_ms) {
  std::vector<v1::VersionReport> reports;
  for (int version = 1; version <= syncs + 1; ++version) {
    if (version > 1) Perturb(model, kPerturbOneIn, version);
    const absl::Time begin = MonotonicNow();
    auto report = trainer.Publish(version, PublishObserver());
    const double took_ms = absl::ToDoubleMilliseconds(MonotonicNow() - begin);
    if (!report.ok()) return report.status();
    for (const v1::ReplicaOutcome& replica : report->replicas()) {
      if (replica.outcome() != v1::OUTCOME_APPLIED) {
        return absl::AbortedError(absl::StrCat(replica.replica(), " was left out: ", replica.reason()));
      }
    }
    if (version == 1) continue;
    control_ms->push_back(took_ms - Slowest(*report, AllStages));
    reports.push_back(*std::move(report));
  }
  return reports;
}

void Summarize(const std::vector<v1::VersionReport>& reports, SyncResult* result) {
  using v1::StageTimings;
  using v1::VersionReport;
  const auto slowest = [&](double (StageTimings::*stage)() const) {
    return MedianOf(reports, [stage](const VersionReport& r) { return Slowest(r, std::mem_fn(stage)); });
  };
  result->transfer_ms = slowest(&StageTimings::transfer_ms);
  result->check_ms = slowest(&StageTimings::check_ms);
  result->apply_ms = slowest(&StageTimings::apply_ms);
  result->pause_ms = slowest(&StageTimings::pause_ms);
  result->encode_ms = MedianOf(reports, [](const VersionReport& r) { return r.encode_ms(); });
  result->released_ms = MedianOf(reports, [](const VersionReport& r) { return r.released_ms(); });
  result->staged_ms = MedianOf(reports, [](const VersionReport& r) { return r.staged_ms(); });
  result->committed_ms = MedianOf(reports, [](const VersionReport& r) { return r.committed_ms(); });
}

}  // namespace

absl::StatusOr<SyncResult> MeasureSync(const SyncOptions& options) {
  SyncResult result;
  result.name = options.name;
  auto model = SharedModel::Create(options.tensors, options.name);
  if (!model.ok()) return model.status();
  FillRandom(*model, 1);
  LocalCluster::Options cluster_options;
  cluster_options.rollouts = options.rollouts;
  cluster_options.trainer_flags = options.trainer_flags;
  cluster_options.trainer_flags.emplace_back("transfer.bucket_bytes", absl::StrCat(options.bucket_bytes));
  cluster_options.rollout_flags = options.rollout_flags;
  const auto cluster = LocalCluster::Start(std::move(cluster_options));
  if (!cluster.ok()) return cluster.status();
  std::vector<std::unique_ptr<EngineThread>> engines;
  std::vector<pid_t> pids = {(*cluster)->trainer_pid()};
  for (int i = 0; i < options.rollouts; ++i) {
    engines.push_back(std::make_unique<EngineThread>(absl::StrCat("bench ", i), (*cluster)->rollout_socket(i)));
    pids.push_back((*cluster)->rollout_pid(i));
  }
  const auto trainer = TrainerClient::Connect((*cluster)->trainer_socket(), absl::Seconds(10));
  if (!trainer.ok()) return trainer.status();
  PeakSampler sampler(pids.size(), [&pids](size_t i) { return LocalCluster::PrivateBytes(pids[i]); });
  const auto registered = model->Register(**trainer, {}, false);
  if (!registered.ok()) return registered.status();
  result.tensors = registered->tensors();
  result.quantized_tensors = registered->quantized_tensors();
  result.payload_bytes = static_cast<int64_t>(registered->payload_bytes());
  result.buckets = registered->buckets();
  for (const Tensor& tensor : options.tensors) result.source_bytes += BytesOf(tensor);
  const absl::Status ready = WaitUntilReady(**cluster, options.rollouts);
  if (!ready.ok()) return ready;
  std::vector<double> control_ms;
  const auto reports = PublishAll(**trainer, *model, options.syncs, &control_ms);
  if (!reports.ok()) return reports.status();
  result.control_ms = Median(std::move(control_ms));
  Summarize(*reports, &result);
  const absl::Status predicted = Predict(options, &result);
  if (!predicted.ok()) return predicted;
  const std::vector<int64_t> peaks = sampler.Stop();
  for (size_t i = 0; i < peaks.size(); ++i) result.memory[i].peak_bytes = peaks[i];
  return result;
}

}  // namespace wsync::cli
