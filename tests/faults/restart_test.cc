// Agents that come back: the trainer agent under its sinks and its training process, an agent whose data plane is
// wedged. And that none of the failpoints is in what users run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rpc/daemon.h"
#include "tests/faults/group_test.h"

namespace wsync::faults {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class Restart : public GroupTest {
 protected:
  void SetUp() override { StartGroup(); }
};

TEST_F(Restart, TheTrainingProcessRegistersAgainByItselfAndVersionsGoOn) {
  group_->agents().KillTrainer();
  usleep(300'000);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(group_->CheckContent(i, {version_}, false).ok());  // served on
  ASSERT_TRUE(group_->agents().StartTrainer().ok());
  const absl::Time back = MonotonicNow();
  const absl::Status ready = group_->AwaitReady(Scaled(absl::Seconds(10)));  // nobody published or registered
  EXPECT_TRUE(ready.ok()) << ready;
  std::printf("RESTART|trainer agent, idle|all ready after|%.2f\n", absl::ToDoubleSeconds(MonotonicNow() - back));
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(group_->CheckContent(i, {version_}, false).ok());
  const auto older = group_->Publish(version_, Scaled(absl::Seconds(10)));
  ASSERT_TRUE(older.has_value());
  EXPECT_TRUE(older->ok()) << older->message;  // the same content: a no-op
  Commit();
}

TEST_F(Restart, APublishThatTheAgentsDeathCutOffIsMadeAgain) {
  ASSERT_TRUE(ArmFailpoint(group_->agents().trainer_pid(), "trainer.begin", Fault::kKill, 0).ok());
  const pid_t pid = group_->agents().trainer_pid();
  group_->BeginPublish(++version_);
  const absl::Time deadline = MonotonicNow() + Scaled(absl::Seconds(10));
  while (!HasEnded(pid) && MonotonicNow() < deadline) usleep(1000);
  ASSERT_TRUE(group_->agents().RestartTrainer().ok());
  const absl::Time back = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(absl::Seconds(15)));
  ASSERT_TRUE(published.has_value());
  std::printf("RESTART|trainer agent, in a version|committed after|%.2f\n",
              absl::ToDoubleSeconds(MonotonicNow() - back));
  EXPECT_TRUE(published->ok()) << published->message;
  AwaitServed();
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

TEST_F(Restart, WithoutAnAgentAPublishFailsWithinASecondAndSaysWhatToDo) {
  group_->agents().KillTrainer();
  const auto published = group_->Publish(++version_, Scaled(absl::Seconds(12)));
  ASSERT_TRUE(published.has_value());
  EXPECT_EQ(published->code, absl::StatusCode::kUnavailable);
  EXPECT_LT(published->took, Scaled(kKilled));
  EXPECT_THAT(published->message, HasSubstr("start it and publish again"));
  ASSERT_TRUE(group_->agents().StartTrainer().ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

// Its retries failed for five seconds, while the agent was back after a tenth of one.
TEST_F(Restart, ATrainingProcessWhoseAgentDiesAsItRegistersIsRegisteredSoonAfterItsRestart) {
  for (int i = 0; i < 3; ++i) {
    const pid_t pid = group_->agents().trainer_pid();
    ASSERT_TRUE(ArmFailpoint(pid, "trainer.register", Fault::kKill, 0).ok());
    ASSERT_TRUE(group_->StartTrainerProcess().ok());
    const absl::Time deadline = MonotonicNow() + Scaled(kHardLimit);
    while (!HasEnded(pid) && MonotonicNow() < deadline) usleep(1000);
    ASSERT_TRUE(group_->agents().RestartTrainer().ok());
    EXPECT_TRUE(group_->trainer().Await("registered", Scaled(absl::Seconds(2))).has_value());
    ASSERT_NO_FATAL_FAILURE(AwaitReady());
  }
  Commit();
}

// It failed at once with what the last attempt to connect had ended with, though the agent was there again.
TEST_F(Restart, APublishRightAfterAStoppedAgentGoesOnIsMade) {
  ASSERT_NO_FATAL_FAILURE(Stop(group_->agents().trainer_pid()));
  const auto unanswered = group_->Publish(++version_, Scaled(kHardLimit));
  kill(group_->agents().trainer_pid(), SIGCONT);
  ASSERT_TRUE(unanswered.has_value());
  EXPECT_EQ(unanswered->code, absl::StatusCode::kUnavailable);
  EXPECT_LT(unanswered->took, Scaled(kStopped));
  EXPECT_THAT(unanswered->message, ContainsRegex("was lost in phase begin of version [0-9]+, last heard of [34]"));
  Commit();
}

// A thread of the data plane that never comes back, and a backend that knows it: what an NCCL abort that hangs is.
TEST_F(Restart, AWedgedTrainerAgentExitsForItsSupervisor) {
  const pid_t pid = group_->agents().trainer_pid();
  ASSERT_TRUE(ArmFailpoint(pid, "trainer.bucket.middle", Fault::kHang, 0).ok());
  group_->BeginPublish(++version_);
  usleep(200'000);
  ASSERT_TRUE(ArmFailpoint(pid, "trainer.health", Fault::kError, static_cast<int>(absl::StatusCode::kInternal)).ok());
  const absl::Time begun = MonotonicNow();
  EXPECT_EQ(AwaitExit(pid), kExitForRestart);
  EXPECT_LT(MonotonicNow() - begun, Scaled(absl::Seconds(4)));
  ASSERT_TRUE(group_->agents().RestartTrainer().ok());
  ASSERT_TRUE(group_->AwaitPublished(Scaled(absl::Seconds(15))).has_value());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  std::printf("RESTART|wedged trainer agent|all ready after|%.2f\n", absl::ToDoubleSeconds(MonotonicNow() - begun));
  Commit();
}

TEST_F(Restart, AWedgedRolloutAgentExitsForItsSupervisorAndTheOthersGoOn) {
  const pid_t pid = group_->agents().rollout_pid(1);
  ASSERT_TRUE(ArmFailpoint(pid, "rollout.bucket.middle", Fault::kHang, 0).ok());
  group_->BeginPublish(++version_);
  usleep(200'000);
  ASSERT_TRUE(ArmFailpoint(pid, "rollout.health", Fault::kError, static_cast<int>(absl::StatusCode::kInternal)).ok());
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(absl::Seconds(10)));
  ASSERT_TRUE(published.has_value());
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, HasSubstr("rollout-1"));
  EXPECT_EQ(AwaitExit(pid), kExitForRestart);
  std::printf("RESTART|wedged rollout agent|committed without it after|%.2f\n",
              absl::ToDoubleSeconds(published->at - begun));
  EXPECT_LT(published->at - begun, Scaled(absl::Seconds(4)));
  group_->agents().KillRollout(1);
  ASSERT_TRUE(group_->agents().StartRollout(1).ok());
  EXPECT_TRUE(group_->AwaitVersion(1, version_, Scaled(absl::Seconds(15))).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

// The same, and nobody knows: the backend thinks all is well.
TEST_F(Restart, ATrainerAgentWhoseSendThreadHangsExitsForItsSupervisor) {
  const pid_t pid = group_->agents().trainer_pid();
  ASSERT_TRUE(ArmFailpoint(pid, "trainer.bucket.middle", Fault::kHang, 0).ok());
  Commit();  // everything is on the wire by then, and nobody misses the thread
  const auto published = group_->Publish(++version_, Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_FALSE(published->ok());
  const absl::Time answered = MonotonicNow();
  EXPECT_EQ(AwaitExit(pid), kExitForRestart);
  std::printf("RESTART|hung send thread|publish answered after, agent ended after|%.2f %.2f\n",
              absl::ToDoubleSeconds(published->took),
              absl::ToDoubleSeconds(published->took + MonotonicNow() - answered));
  ASSERT_TRUE(group_->agents().RestartTrainer().ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

TEST_F(Restart, ARolloutAgentWhoseReceiveThreadHangsExitsForItsSupervisorAndTheOthersGoOn) {
  const pid_t pid = group_->agents().rollout_pid(1);
  ASSERT_TRUE(ArmFailpoint(pid, "rollout.bucket.middle", Fault::kHang, 0).ok());
  const absl::Time begun = MonotonicNow();
  const auto published = group_->Publish(++version_, Scaled(absl::Seconds(10)));
  ASSERT_TRUE(published.has_value());
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, HasSubstr("rollout-1"));
  EXPECT_LT(published->took, Scaled(kHardLimit));
  EXPECT_EQ(AwaitExit(pid), kExitForRestart);
  std::printf("RESTART|hung receive thread|agent ended after|%.2f\n", absl::ToDoubleSeconds(MonotonicNow() - begun));
  group_->agents().KillRollout(1);
  ASSERT_TRUE(group_->agents().StartRollout(1).ok());
  EXPECT_TRUE(group_->AwaitVersion(1, version_, Scaled(absl::Seconds(15))).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

// The thread that an agent thinks with never comes back from a piece of work; its connections go on answering.
TEST_F(Restart, ATrainerAgentWhoseControlThreadHangsExitsForItsSupervisor) {
  const pid_t pid = group_->agents().trainer_pid();
  ASSERT_TRUE(ArmFailpoint(pid, "trainer.begin", Fault::kHang, 0).ok());
  group_->BeginPublish(++version_);
  const absl::Time begun = MonotonicNow();
  EXPECT_EQ(AwaitExit(pid), kExitForRestart);
  const auto published = group_->AwaitPublished(Scaled(absl::Seconds(5)));
  ASSERT_TRUE(published.has_value());
  EXPECT_EQ(published->code, absl::StatusCode::kUnavailable) << published->message;
  EXPECT_LT(published->at - begun, Scaled(kHardLimit));
  std::printf("RESTART|hung trainer agent|publish answered after|%.2f\n", absl::ToDoubleSeconds(published->at - begun));
  ASSERT_TRUE(group_->agents().RestartTrainer().ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

TEST_F(Restart, ARolloutAgentWhoseControlThreadHangsExitsForItsSupervisorAndTheOthersGoOn) {
  const pid_t pid = group_->agents().rollout_pid(1);
  ASSERT_TRUE(ArmFailpoint(pid, "rollout.begin", Fault::kHang, 0).ok());
  const auto published = group_->Publish(++version_, Scaled(absl::Seconds(10)));
  ASSERT_TRUE(published.has_value());
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, HasSubstr("rollout-1"));
  EXPECT_LT(published->took, Scaled(kStopped));
  std::printf("RESTART|hung rollout agent|committed without it after|%.2f\n", absl::ToDoubleSeconds(published->took));
  EXPECT_EQ(AwaitExit(pid), kExitForRestart);
  group_->agents().KillRollout(1);
  ASSERT_TRUE(group_->agents().StartRollout(1).ok());
  EXPECT_TRUE(group_->AwaitVersion(1, version_, Scaled(absl::Seconds(15))).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

std::string ReadBinary(const std::string& name) {
  const auto path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
  std::string binary(std::filesystem::file_size(path), '\0');  // a sanitizer's is of 90 MB
  std::ifstream(path, std::ios::binary).read(binary.data(), static_cast<std::streamsize>(binary.size()));
  return binary;
}

bool Holds(const std::string& binary, const std::string& text) { return binary.find(text) != std::string::npos; }

TEST(Failpoints, AreAbsentFromRelease) {
  for (const char* side : {"trainer", "rollout"}) {
    const std::string release = ReadBinary(absl::StrCat("wsync-", side));
    const std::string faulty = ReadBinary(absl::StrCat("wsync-", side, "-faults"));
    ASSERT_FALSE(release.empty());
    for (const std::string& mark : {absl::StrCat(side, ".commit"), absl::StrCat(side, ".health"),
                                    std::string("WSYNC_FAILPOINT_FIFO"), std::string("fiu_fail")}) {
      EXPECT_TRUE(Holds(faulty, mark)) << mark;  // else this test would look for the wrong thing
      EXPECT_FALSE(Holds(release, mark)) << mark << " is in wsync-" << side;
    }
  }
}

}  // namespace
}  // namespace wsync::faults
