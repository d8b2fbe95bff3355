// Whole versions through real daemons: what must hold when all is well, and when a member or a weight is not.
#include <sys/wait.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/checkpoint.h"
#include "client/cli/export.h"
#include "client/cli/reference_check.h"
#include "tests/system/system_testing.h"

namespace wsync::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Modes {
  const char* source;
  const char* sink;
};

class SyncInEveryMode : public System, public ::testing::WithParamInterface<Modes> {};

TEST_P(SyncInEveryMode, TwoRolloutsServeWhatTheTrainerPublished) {
  Start(2, {{"transfer.source_mode", GetParam().source}}, {{"transfer.sink_mode", GetParam().sink}});
  ASSERT_NO_FATAL_FAILURE(RegisterModel(2));
  for (uint64_t version = 1; version <= 4; ++version) {
    Perturb(*model_, 10, version);
    const auto report = Publish(version);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_EQ(report->replicas_size(), 2);
    for (const v1::ReplicaOutcome& replica : report->replicas()) {
      EXPECT_EQ(replica.outcome(), v1::OUTCOME_APPLIED) << replica.reason();
    }
  }
  const v1::JobStatus status =
      WaitFor([](const v1::JobStatus& s) { return s.state() == v1::SYNC_STATE_IN_SYNC; }, "in sync");
  EXPECT_EQ(status.last_version().version(), 4u);

  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(engines_[i]->WaitForVersion(4, kPatience));
    engines_[i]->Stop();
    if (std::string(GetParam().sink) == "in_place" && std::string(GetParam().source) == "ring") continue;
    ExportRequest request;
    request.out = absl::StrCat(cluster_->directory(), "/export-", i);
    request.socket = cluster_->rollout_socket(i);
    const auto exported = ExportCheckpoint(request);
    ASSERT_TRUE(exported.ok()) << exported.status();
    EXPECT_EQ(exported->version, 4u);
    const auto checkpoint = Checkpoint::Open(request.out);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto checked = CheckAgainstSource(*model_, **checkpoint);
    ASSERT_TRUE(checked.ok()) << checked.status();
    EXPECT_EQ(checked->quantized_tensors, 9);
    EXPECT_EQ(checked->identical_tensors, 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SyncInEveryMode,
                         ::testing::Values(Modes{"full", "staged"}, Modes{"ring", "staged"}, Modes{"full", "in_place"},
                                           Modes{"ring", "in_place"}),
                         [](const auto& mode) { return absl::StrCat(mode.param.source, "_", mode.param.sink); });

class Sync : public System {};

TEST_F(Sync, NonFiniteWeightFailsTheVersionAndTheOldOneIsServed) {
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  ASSERT_TRUE(Publish(1).ok());
  const uint16_t nan = 0x7FC0;
  size_t tensor = 0;
  while (model_->tensors()[tensor].tensor.name != "model.layers.1.mlp.up_proj.weight") ++tensor;
  uint16_t good = 0;
  std::memcpy(&good, model_->Data(tensor) + 2 * 12345, 2);
  std::memcpy(model_->Data(tensor) + 2 * 12345, &nan, 2);
  const auto failed = Publish(2);
  ASSERT_FALSE(failed.ok());
  EXPECT_THAT(std::string(failed.status().message()),
              AllOf(HasSubstr("model.layers.1.mlp.up_proj.weight"), HasSubstr("12345")));
  EXPECT_TRUE(engines_[0]->WaitForVersion(1, kPatience));
  EXPECT_EQ(WaitFor([](const v1::JobStatus& s) { return !s.has_round(); }, "idle").last_version().version(), 1u);

  std::memcpy(model_->Data(tensor) + 2 * 12345, &good, 2);
  Perturb(*model_, 100, 1);
  const auto repaired = Publish(2);  // a version that failed was never committed: its number is free
  EXPECT_TRUE(repaired.ok()) << repaired.status();
  EXPECT_TRUE(engines_[0]->WaitForVersion(2, kPatience));
}

TEST_F(Sync, VersionsOnlyGrowAndTheSameContentIsANoOp) {
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  ASSERT_TRUE(Publish(5).ok());
  const auto again = Publish(5);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->already_committed());
  const auto older = Publish(4);
  EXPECT_EQ(older.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(older.status().message()), AllOf(HasSubstr("4"), HasSubstr("5")));
  Perturb(*model_, 10, 3);
  const auto other = Publish(5);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(engines_[0]->WaitForVersion(5, kPatience));
}

TEST_F(Sync, KilledRolloutIsNamedSurvivorsGoOnAndItCatchesUp) {
  Start(2);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(2));
  ASSERT_TRUE(Publish(1).ok());
  cluster_->KillRollout(1);
  Perturb(*model_, 10, 1);
  const auto report = Publish(2);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(engines_[0]->WaitForVersion(2, kPatience));
  const v1::JobStatus degraded =
      WaitFor([](const v1::JobStatus& s) { return s.state() == v1::SYNC_STATE_DEGRADED; }, "degraded");
  ASSERT_NE(Member(degraded, "rollout-1"), nullptr);
  EXPECT_EQ(Member(degraded, "rollout-1")->state(), "lost");
  EXPECT_THAT(degraded.reason(), HasSubstr("rollout-1"));
  EXPECT_EQ(Wsync("status -c " + cluster_->coordinator()).exit_code, 3);
  EXPECT_EQ(Wsync("verify -c " + cluster_->coordinator()).exit_code, 3);

  ASSERT_TRUE(cluster_->StartRollout(1).ok());
  WaitFor([](const v1::JobStatus& s) { return s.state() == v1::SYNC_STATE_IN_SYNC; }, "in sync again");
  EXPECT_TRUE(engines_[1]->WaitForVersion(2, kPatience));  // without another publish
  EXPECT_EQ(Wsync("status -c " + cluster_->coordinator()).exit_code, 0);
  EXPECT_EQ(Wsync("verify -c " + cluster_->coordinator()).exit_code, 0);
}

TEST_F(Sync, TooFewReplicasFailThePublishWithTheirNames) {
  Start(1, {{"coordinator.min_replicas", "2"}, {"coordinator.min_replicas_wait_ms", "100ms"}});
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  const auto report = Publish(1);
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(std::string(report.status().message()), AllOf(HasSubstr("1"), HasSubstr("2")));
  EXPECT_EQ(engines_[0]->version(), 0u);
}

TEST_F(Sync, QuorumCommitsWithoutAReplicaThatIsGone) {
  Start(3, {{"coordinator.policy", "quorum"}, {"coordinator.quorum", "2"}, {"coordinator.min_replicas", "2"}});
  ASSERT_NO_FATAL_FAILURE(RegisterModel(3));
  cluster_->KillRollout(2);
  const auto report = Publish(1);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(engines_[0]->WaitForVersion(1, kPatience));
  EXPECT_TRUE(engines_[1]->WaitForVersion(1, kPatience));
}

TEST_F(Sync, RegisteringTwiceIsRefusedUnlessReplaced) {
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  auto second = TrainerClient::Connect(cluster_->trainer_socket(), absl::Seconds(10));
  ASSERT_TRUE(second.ok());
  auto model = SharedModel::Create(SmallModel(), "second");
  ASSERT_TRUE(model.ok());
  const auto refused = model->Register(**second, {}, false);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kAlreadyExists) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("replace"));
  const auto replaced = model->Register(**second, {}, true);
  EXPECT_TRUE(replaced.ok()) << replaced.status();
  EXPECT_EQ(Publish(1).status().code(), absl::StatusCode::kFailedPrecondition);  // the first one's registration is over
}

TEST_F(Sync, DestinationsThatDoNotFitAreListed) {
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  engines_[0]->Stop();
  auto engine = EngineClient::Connect(cluster_->rollout_socket(0), absl::Seconds(10));
  ASSERT_TRUE(engine.ok());
  const auto outputs = (*engine)->GetOutputs(absl::Seconds(10));
  ASSERT_TRUE(outputs.ok()) << outputs.status();
  auto memory = EngineMemory::Create(*outputs);
  ASSERT_TRUE(memory.ok());
  std::vector<Destination> destinations = (*memory)->Destinations();
  destinations[1].dtype = Dtype::kBF16;  // the engine thinks q_proj stays in BF16
  destinations[1].row_pitch_bytes *= 2;
  destinations[5].output = "model.layers.9.mlp.up_proj.weight";
  const auto attached = (*engine)->Attach("test", {(*memory)->handle()}, destinations, false, absl::Seconds(10));
  EXPECT_EQ(attached.status().code(), absl::StatusCode::kInvalidArgument) << attached.status();
  EXPECT_THAT(std::string(attached.status().message()),
              AllOf(HasSubstr("model.layers.0.self_attn.q_proj.weight"), HasSubstr("BF16"),
                    HasSubstr("model.layers.9.mlp.up_proj.weight")));
}

TEST_F(Sync, TrainerAgentRestartLearnsTheVersionFromItsSinks) {
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  ASSERT_TRUE(Publish(3).ok());
  ASSERT_TRUE(cluster_->RestartTrainer().ok());
  // The client registers again by itself.
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "the rollout is ready again");
  EXPECT_EQ(engines_[0]->version(), 3u);  // served on
  const auto older = Publish(2);
  EXPECT_EQ(older.status().code(), absl::StatusCode::kFailedPrecondition) << older.status();
  Perturb(*model_, 10, 1);
  const auto next = Publish(4);
  EXPECT_TRUE(next.ok()) << next.status();
  EXPECT_TRUE(engines_[0]->WaitForVersion(4, kPatience));
}

TEST_F(Sync, SigtermLeavesTheGroupAndExitsWithZero) {
  Start(2);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(2));
  EXPECT_EQ(cluster_->StopRollout(1), 0);
  const v1::JobStatus status = WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "one left");
  EXPECT_TRUE(Publish(1).ok());
}

TEST_F(Sync, SecondTrainerOnTheSamePortSaysWhatToDo) {
  Start(0);
  const std::string binary = std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/wsync-trainer";
  const std::string log = cluster_->directory() + "/second.log";
  const int status = std::system(absl::StrCat(binary, " --coordinator.listen=", cluster_->coordinator(),
                                              " --local_socket=unix://", cluster_->directory(), "/second.sock 2> ", log)
                                     .c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
  std::ifstream in(log);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  EXPECT_THAT(text, AllOf(HasSubstr(cluster_->coordinator()), HasSubstr("coordinator.listen")));
}

}  // namespace
}  // namespace wsync::cli
