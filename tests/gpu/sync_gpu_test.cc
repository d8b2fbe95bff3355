// Whole versions from GPU to GPU through real agents: what must hold when all is well, and when it is not.
#include <csignal>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "tests/gpu/gpu_cluster.h"

namespace wsync::gpu {
namespace {

using testing::AllOf;
using testing::HasSubstr;

struct Modes {
  const char* source;
  const char* sink;
};

class SyncOnGpusInEveryMode : public GpuCluster, public testing::WithParamInterface<Modes> {};

TEST_P(SyncOnGpusInEveryMode, EngineHoldsByteForByteWhatTheHostEncoderGives) {
  Start({{"transfer.source_mode", GetParam().source}}, {{"transfer.sink_mode", GetParam().sink}});
  ASSERT_NO_FATAL_FAILURE(Register());
  for (uint64_t version = 1; version <= 5; ++version) {
    Train(static_cast<uint32_t>(version));
    const auto report = Publish(version);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_EQ(report->replicas_size(), 1);
    EXPECT_EQ(report->replicas(0).outcome(), v1::OUTCOME_APPLIED) << report->replicas(0).reason();
    ASSERT_TRUE(engine_->WaitForVersion(version));
    ASSERT_TRUE(engine_->Memory() == Expected()) << "version " << version;
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SyncOnGpusInEveryMode,
                         testing::Values(Modes{"full", "staged"}, Modes{"ring", "staged"}, Modes{"full", "in_place"},
                                         Modes{"ring", "in_place"}),
                         [](const auto& mode) { return absl::StrCat(mode.param.source, "_", mode.param.sink); });

class SyncOnGpus : public GpuCluster {};

TEST_F(SyncOnGpus, WorksOverSockets) {
  setenv("NCCL_P2P_DISABLE", "1", 1);
  setenv("NCCL_SHM_DISABLE", "1", 1);
  Start();
  unsetenv("NCCL_P2P_DISABLE");
  unsetenv("NCCL_SHM_DISABLE");
  ASSERT_NO_FATAL_FAILURE(Register());
  for (uint64_t version = 1; version <= 3; ++version) {
    Train(static_cast<uint32_t>(version));
    const auto report = Publish(version);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_TRUE(engine_->WaitForVersion(version));
    ASSERT_TRUE(engine_->Memory() == Expected()) << "version " << version;
  }
}

TEST_F(SyncOnGpus, NonFiniteWeightFailsTheVersionByNameAndTheOldOneIsServed) {
  Start();
  ASSERT_NO_FATAL_FAILURE(Register());
  ASSERT_TRUE(Publish(1).ok());
  const Bytes before = Expected();
  Poke(3, 123456, 0x7FC0);
  const auto failed = Publish(2);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(failed.status().message()),
              AllOf(HasSubstr("model.layers.0.mlp.up_proj.weight"), HasSubstr("123456")));
  EXPECT_TRUE(engine_->WaitForVersion(1));
  EXPECT_TRUE(engine_->Memory() == before);
  Train(9);  // writes all weights anew
  const auto repaired = Publish(2);
  ASSERT_TRUE(repaired.ok()) << repaired.status();
  ASSERT_TRUE(engine_->WaitForVersion(2));
  EXPECT_TRUE(engine_->Memory() == Expected());
}

TEST_F(SyncOnGpus, KilledRolloutIsNamedAndTheNextVersionReachesItsSuccessor) {
  Start();
  ASSERT_NO_FATAL_FAILURE(Register());
  ASSERT_TRUE(Publish(1).ok());
  cluster_->KillRollout(0);
  Train(2);
  const absl::Time begin = MonotonicNow();
  const auto failed = Publish(2);
  EXPECT_FALSE(failed.ok());
  EXPECT_THAT(std::string(failed.status().message()), HasSubstr("rollout-0"));
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(10));
  ASSERT_TRUE(cluster_->StartRollout(0).ok());
  WaitUntilReady();
  const auto next = Publish(3);
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_TRUE(engine_->WaitForVersion(3));
  EXPECT_TRUE(engine_->Memory() == Expected());
}

// The peer neither answers nor ends: nothing on NVLink says so, only its silence.
TEST_F(SyncOnGpus, StoppedRolloutDelaysTheTrainerByLessThanTenSeconds) {
  Start();
  ASSERT_NO_FATAL_FAILURE(Register());
  ASSERT_TRUE(Publish(1).ok());
  Train(2);
  kill(cluster_->rollout_pid(0), SIGSTOP);
  const absl::Time begin = MonotonicNow();
  const auto failed = Publish(2);
  EXPECT_FALSE(failed.ok());
  EXPECT_THAT(std::string(failed.status().message()), HasSubstr("rollout-0"));
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(10));
  std::printf("a stopped rollout was given up after %s\n", absl::FormatDuration(MonotonicNow() - begin).c_str());
  kill(cluster_->rollout_pid(0), SIGCONT);
  WaitUntilReady();
  const auto next = Publish(3);
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_TRUE(engine_->WaitForVersion(3));
  EXPECT_TRUE(engine_->Memory() == Expected());
}

TEST_F(SyncOnGpus, EngineThatComesBackIsCaughtUpFromTheRetainedCopy) {
  Start();
  ASSERT_NO_FATAL_FAILURE(Register());
  ASSERT_TRUE(Publish(1).ok());
  cluster_->KillRollout(0);
  ASSERT_TRUE(cluster_->StartRollout(0).ok());
  ASSERT_TRUE(engine_->WaitForUpdates(2));  // without another publish
  EXPECT_EQ(engine_->version(), 1u);
  EXPECT_TRUE(engine_->Memory() == Expected());
}

TEST_F(SyncOnGpus, TrainerAgentThatRestartsGoesOnWithHigherVersions) {
  Start();
  ASSERT_NO_FATAL_FAILURE(Register());
  ASSERT_TRUE(Publish(3).ok());
  ASSERT_TRUE(cluster_->RestartTrainer().ok());
  WaitUntilReady();  // the client registers again by itself
  Train(4);
  const auto next = Publish(4);
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_TRUE(engine_->WaitForVersion(4));
  EXPECT_TRUE(engine_->Memory() == Expected());
}

TEST_F(SyncOnGpus, FullGpuIsAClearErrorAndTheNextRegistrationWorks) {
  Start();
  {
    const MemoryHog hog(0, int64_t{4} << 20);
    const auto refused = TryRegister();
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("GPU 0"));
  }
  ASSERT_NO_FATAL_FAILURE(Register());
  ASSERT_TRUE(Publish(1).ok());
  ASSERT_TRUE(engine_->WaitForVersion(1));
  EXPECT_TRUE(engine_->Memory() == Expected());
  // In the middle: what is registered goes on, since a version allocates nothing.
  const MemoryHog hog(0, int64_t{4} << 20);
  Train(2);
  const auto next = Publish(2);
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_TRUE(engine_->WaitForVersion(2));
  EXPECT_TRUE(engine_->Memory() == Expected());
}

TEST_F(SyncOnGpus, RolloutOnTheTrainersGpuIsRefusedWithTheReason) {
  cli::LocalCluster::Options options;
  options.rollouts = 1;
  options.devices = {0, 0};
  auto cluster = cli::LocalCluster::Start(std::move(options));
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  cluster_ = *std::move(cluster);
  const absl::Time deadline = MonotonicNow() + kPatience;
  while (LogOf("rollout-0").find("one rank per GPU") == std::string::npos && MonotonicNow() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_THAT(LogOf("rollout-0"), AllOf(HasSubstr("one rank per GPU"), HasSubstr("transfer.device")));
}

TEST_F(SyncOnGpus, RolloutWithAnotherNcclEnvironmentIsRefusedWithBoth) {
  Start({}, {{"transfer.nccl_max_ctas", "4"}});
  const absl::Time deadline = MonotonicNow() + kPatience;
  while (LogOf("rollout-0").find("max_ctas 4") == std::string::npos && MonotonicNow() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_THAT(LogOf("rollout-0"), AllOf(HasSubstr("max_ctas 4"), HasSubstr("transfer.nccl_max_ctas")));
}

}  // namespace
}  // namespace wsync::gpu
