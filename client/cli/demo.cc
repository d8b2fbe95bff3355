// wsync demo: the main job on one machine, told step by step, every step checked.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/checkpoint/model.h"
#include "client/cli/command.h"
#include "client/cli/demo_model.h"
#include "client/cli/engine_thread.h"
#include "client/cli/export.h"
#include "client/cli/local_cluster.h"
#include "client/cli/progress_bar.h"
#include "client/cli/reference_check.h"
#include "client/cli/shared_model.h"
#include "client/cli/status_view.h"
#include "client/cli/terminal.h"
#include "client/cli/usage.h"
#include "client/local/trainer_client.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr int kRollouts = 2;
constexpr int kVictim = 1;
constexpr uint64_t kSteps = 5;
constexpr uint64_t kKillAtVersion = 3;
constexpr double kKillAtFraction = 0.3;  // of the bytes on the wire: the transfer is surely under way
constexpr int64_t kPerturbOneIn = 50;    // 2% of BF16 values change per step, as at a learning rate of 1e-6
constexpr absl::Duration kSettle = absl::Minutes(5);  // as patient as the stage timeout

struct DemoArguments {
  std::string model;
  std::string shapes = "qwen2.5-0.5b";
  bool keep = false;
};

class Demo {
 public:
  explicit Demo(const DemoArguments& arguments) : arguments_(arguments), color_(UseColor(stdout)) {}
  absl::Status Run();
  // Where the agents' logs are, kept for whoever looks into a failure.
  std::string KeepLogs() {
    if (cluster_ == nullptr) return "";
    cluster_->Keep();
    std::error_code ignored;  // logs are small, random weights are not
    if (!arguments_.keep) std::filesystem::remove_all(cluster_->directory() + "/model", ignored);
    return cluster_->directory();
  }

 private:
  absl::Status MakeModel();
  absl::Status StartAgents();
  absl::Status RegisterModel();
  absl::Status Publish(uint64_t version, bool kill_midway);
  absl::Status ReviveVictim(uint64_t version);
  absl::Status Verify();
  absl::Status ShowStatus(const std::string& when);
  absl::Status WaitUntilServed(uint64_t version, int members);
  void Say(const std::string& text) {
    const double seconds = absl::ToDoubleSeconds(MonotonicNow() - start_);
    Write(stdout, absl::StrCat(Paint(absl::StrFormat("[%5.1f s]", seconds), Color::kDim, color_), " ", text, "\n"));
    std::fflush(stdout);
  }
  void Chapter(const std::string& text, Color color = Color::kBold) {
    Write(stdout, absl::StrCat("\n", Paint(absl::StrCat("== ", text), color, color_), "\n"));
  }

  const DemoArguments arguments_;
  const bool color_;
  const absl::Time start_ = MonotonicNow();
  std::string model_directory_;
  std::unique_ptr<LocalCluster> cluster_;
  std::unique_ptr<SharedModel> model_;
  std::vector<std::string> modules_to_not_convert_;  // the checkpoint's own list
  std::unique_ptr<TrainerClient> trainer_;
  std::vector<std::unique_ptr<EngineThread>> engines_;
};

absl::Status Demo::StartAgents() {
  Chapter("Start: one trainer agent, two rollout agents, an engine beside each of the two");
  LocalCluster::Options options;
  options.rollouts = kRollouts;
  options.keep = arguments_.keep;
  options.trainer_flags = {
      {"transfer.bucket_bytes", "64MiB"},       // several buckets even for a small model
      {"coordinator.stage_timeout_ms", "5min"}  // a busy laptop is slow, not broken; the kill is seen by its heartbeat
  };
  auto cluster = LocalCluster::Start(std::move(options));
  if (!cluster.ok()) return cluster.status();
  cluster_ = *std::move(cluster);
  Say(absl::StrCat("wsync-trainer pid ", cluster_->trainer_pid(), ", coordinator on ", cluster_->coordinator()));
  for (int i = 0; i < kRollouts; ++i) {
    Say(absl::StrCat("wsync-rollout rollout-", i, " pid ", cluster_->rollout_pid(i)));
    engines_.push_back(std::make_unique<EngineThread>(absl::StrCat("demo engine ", i), cluster_->rollout_socket(i)));
  }
  return absl::OkStatus();
}

absl::Status Demo::MakeModel() {
  Chapter("The model");
  model_directory_ = arguments_.model;
  if (model_directory_.empty()) {
    model_directory_ = cluster_->directory() + "/model";
    const absl::Status written = WriteRandomCheckpoint(arguments_.shapes, model_directory_);
    if (!written.ok()) return written;
    Say(absl::StrCat("wrote a checkpoint with the true shapes of ", arguments_.shapes, " and random weights"));
  }
  const auto checkpoint = Checkpoint::Open(model_directory_);
  if (!checkpoint.ok()) return checkpoint.status();
  ProgressBar bar("mapping");
  const Model model = ModelOf(**checkpoint);
  auto shared = SharedModel::FromModel(model, model_directory_, [&](int64_t done, int64_t total) {
    bar.Update(static_cast<double>(done) / static_cast<double>(std::max<int64_t>(total, 1)), "");
  });
  bar.Clear();
  if (!shared.ok()) return shared.status();
  model_ = std::make_unique<SharedModel>(*std::move(shared));
  modules_to_not_convert_ = model.modules_to_not_convert;
  Say(absl::StrCat("the training process holds ", Counted(model_->tensors().size(), "tensor"), ", ",
                   FormatBytes((*checkpoint)->total_bytes()), " in BF16"));
  return absl::OkStatus();
}

absl::Status Demo::RegisterModel() {
  auto client = TrainerClient::Connect(cluster_->trainer_socket(), absl::Seconds(5));
  if (!client.ok()) return client.status();
  trainer_ = *std::move(client);
  const auto reply = model_->Register(*trainer_, modules_to_not_convert_, false);
  if (!reply.ok()) return reply.status();
  Say(absl::StrCat("registered: ", Counted(reply->quantized_tensors(), "tensor"), " in FP8, ",
                   FormatBytes(reply->payload_bytes()), " per sync in ", Counted(reply->buckets(), "bucket")));
  const auto ready = cluster_->WaitFor(
      [](const v1::JobStatus& status) {
        return std::count_if(status.members().begin(), status.members().end(), [](const v1::MemberStatus& m) {
                 return m.role() == "rollout" && m.state() == "ready";
               }) == kRollouts;
      },
      kSettle, "both rollouts attached");
  if (!ready.ok()) return ready.status();
  Say("both rollouts have the same plan, and their engines are attached");
  return absl::OkStatus();
}

absl::Status Demo::Publish(uint64_t version, bool kill_midway) {
  if (version > 1) {
    const int64_t changed = Perturb(*model_, kPerturbOneIn, version);
    Say(absl::StrCat("training step ", version, ": ", FormatCount(changed), " weights moved"));
  }
  bool killed = false;
  double released_ms = 0;
  ProgressBar bar(absl::StrCat("version ", version));
  PublishObserver observer;
  observer.released = [&](const v1::Released& released) { released_ms = released.elapsed_ms(); };
  observer.progress = [&](const v1::PublishProgress& p) {
    const double sent =
        static_cast<double>(p.sent_bytes()) / static_cast<double>(std::max<uint64_t>(p.total_bytes(), 1));
    bar.Update(sent, FormatBytes(p.sent_bytes()));
    if (!kill_midway || killed || sent < kKillAtFraction) return;
    killed = true;
    bar.Clear();
    Say(Paint(
        absl::StrFormat("kill -9 rollout-%d, with %.0f%% of version %d on the wire", kVictim, sent * 100, version),
        Color::kRed, color_));
    cluster_->KillRollout(kVictim);
  };
  const auto report = trainer_->Publish(version, observer);
  bar.Clear();
  if (!report.ok()) return report.status();
  if (kill_midway && !killed) return absl::InternalError("the transfer ended before the kill; use a larger model");
  const int64_t applied = std::count_if(report->replicas().begin(), report->replicas().end(),
                                        [](const v1::ReplicaOutcome& r) { return r.outcome() == v1::OUTCOME_APPLIED; });
  const bool as_expected = kill_midway == (applied < kRollouts);
  Say(Paint(absl::StrCat("version ", version, " committed on ", applied, " of ", kRollouts, " rollouts"),
            as_expected ? Color::kGreen : Color::kRed, color_) +
      absl::StrCat(": weights free again after ", FormatMs(released_ms), ", served after ",
                   FormatMs(report->committed_ms()), " (",
                   FormatRate(static_cast<double>(report->payload_bytes()) / report->staged_ms() * 1e3),
                   " to each), digest ", ShortHash(report->content_digest())));
  if (as_expected) return absl::OkStatus();
  std::string missing = kill_midway ? "the killed rollout applied it" : "";
  for (const v1::ReplicaOutcome& replica : report->replicas()) {
    if (replica.outcome() != v1::OUTCOME_APPLIED) absl::StrAppend(&missing, replica.replica(), ": ", replica.reason());
  }
  return absl::InternalError(absl::StrCat("version ", version, ": ", missing));
}

absl::Status Demo::ReviveVictim(uint64_t version) {
  const absl::Status started = cluster_->StartRollout(kVictim);
  if (!started.ok()) return started;
  Say(absl::StrCat("rollout-", kVictim, " is back, pid ", cluster_->rollout_pid(kVictim),
                   "; it takes the committed version from the trainer agent's copy, the trainer does nothing"));
  const absl::Status served = WaitUntilServed(version, kRollouts);
  if (!served.ok()) return served;
  Say(absl::StrCat("rollout-", kVictim, " serves version ", version));
  return absl::OkStatus();
}

absl::Status Demo::WaitUntilServed(uint64_t version, int members) {
  const auto status = cluster_->WaitFor(
      [&](const v1::JobStatus& s) {
        return std::count_if(s.members().begin(), s.members().end(), [&](const v1::MemberStatus& m) {
                 return m.role() == "rollout" && m.serving().version() == version && m.state() == "ready";
               }) == members;
      },
      kSettle, absl::StrCat("version ", version, " on ", members, " rollouts"));
  return status.status();
}

absl::Status Demo::ShowStatus(const std::string& when) {
  const auto status = cluster_->Status();
  if (!status.ok()) return status.status();
  Write(stdout, absl::StrCat("\n", Paint(absl::StrCat("$ wsync status      # ", when), Color::kDim, color_), "\n"));
  StatusViewOptions view;
  view.color = color_;
  view.max_events = 4;
  Write(stdout, RenderStatus(*status, view) + "\n");
  return absl::OkStatus();
}

absl::Status Demo::Verify() {
  Chapter("Check: do the rollouts hold the trainer's weights?");
  const auto status = cluster_->Status();
  if (!status.ok()) return status.status();
  bool agree = false;
  Write(stdout,
        absl::StrCat(Paint("$ wsync verify", Color::kDim, color_), "\n", RenderVerify(*status, color_, &agree)));
  if (!agree) return absl::DataLossError("the members do not serve the same content");

  engines_[kVictim]->Stop();
  ExportRequest request;
  request.out = cluster_->directory() + "/exported";
  request.like = model_directory_;
  request.socket = cluster_->rollout_socket(kVictim);
  const auto exported = ExportCheckpoint(request);
  if (!exported.ok()) return exported.status();
  Say(absl::StrCat("wsync export: version ", exported->version, " of rollout-", kVictim, " as an FP8 checkpoint, ",
                   FormatBytes(exported->bytes)));
  if (exported->version != kSteps) return absl::DataLossError("the exported version is not the last one");
  const auto checkpoint = Checkpoint::Open(request.out);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto report = CheckAgainstSource(*model_, **checkpoint);
  if (!report.ok()) return report.status();
  Say(
      absl::StrFormat("independent dequantization: %s FP8 values in %d tensors within half a unit in the last place "
                      "(worst %.2f%%), %d other tensors byte-equal",
                      FormatCount(report->quantized_values), report->quantized_tensors,
                      report->worst_relative_error * 100, report->identical_tensors));
  return absl::OkStatus();
}

absl::Status Demo::Run() {
  absl::Status status = StartAgents();
  if (status.ok()) status = MakeModel();
  if (status.ok()) status = RegisterModel();
  if (status.ok()) Chapter("Two training steps");
  if (status.ok()) status = Publish(1, false);
  if (status.ok()) status = Publish(2, false);
  if (status.ok()) status = ShowStatus("all is well");
  if (status.ok()) Chapter("A rollout dies in the middle of a transfer");
  if (status.ok()) status = Publish(kKillAtVersion, true);
  if (status.ok()) status = ShowStatus("the survivor serves the new version, the dead one is named");
  if (status.ok()) Chapter("It comes back");
  if (status.ok()) status = ReviveVictim(kKillAtVersion);
  if (status.ok()) status = Publish(4, false);
  if (status.ok()) status = Publish(kSteps, false);
  if (status.ok()) status = ShowStatus("in sync again");
  if (status.ok()) status = Verify();
  if (!status.ok()) return status;
  Chapter("Done: five versions, one crash, nothing torn, nothing lost", Color::kGreen);
  if (arguments_.keep) Say(absl::StrCat("logs, model and export are kept in ", cluster_->directory()));
  return absl::OkStatus();
}

}  // namespace

void AddDemo(CLI::App& app) {
  auto arguments = std::make_shared<DemoArguments>();
  CLI::App* command =
      AddCommand(app, "demo", "Run the main job on this machine: 5 versions, 2 rollouts, 1 crash",
                 "  wsync demo\n"
                 "  wsync demo --model ~/Qwen2.5-0.5B       with your own BF16 checkpoint\n"
                 "  wsync demo --keep                       look at logs and the exported checkpoint afterwards\n"
                 "\nNeeds about 6 GB of memory (4.5 GB of it shared memory and the agents') for the default model.\n",
                 [arguments] {
                   if (!arguments->model.empty()) {  // before any agent is started
                     const auto checkpoint = Checkpoint::Open(arguments->model);
                     if (!checkpoint.ok()) return Fail(checkpoint.status());
                   }
                   Demo demo(*arguments);
                   const absl::Status status = demo.Run();
                   if (status.ok()) return kOk;
                   const std::string logs = demo.KeepLogs();
                   if (!logs.empty()) Print(stderr, "wsync: logs are kept in %s\n", logs);
                   return Fail(status);
                 });
  command->add_option("-m,--model", arguments->model, "use this checkpoint instead of random weights")
      ->type_name("DIR");
  command->add_option("--shapes", arguments->shapes, "known model whose shapes random weights take")
      ->check(KnownModel())
      ->type_name("NAME")
      ->capture_default_str();
  command->add_flag("--keep", arguments->keep, "leave the directory with logs, model and export behind");
}

}  // namespace wsync::cli
