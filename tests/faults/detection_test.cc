// How soon a peer that dies, stands still or is only its half is noticed, and what is said about it. With the default
// heartbeats (1 s, 3 s).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/core/clock.h"
#include "tests/faults/group_test.h"

namespace wsync::faults {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(7);
constexpr absl::Duration kHeartbeat = absl::Milliseconds(400);  // one of the transfer has come by then

class Detection : public GroupTest {
 protected:
  pid_t pid() { return group_->agents().rollout_pid(group_->rollouts() - 1); }

  std::string LastErrorOf(const std::string& name) {
    const auto status = group_->agents().Status();
    if (!status.ok()) return std::string(status.status().message());
    for (const v1::MemberStatus& member : status->members()) {
      if (member.name() == name) return absl::StrCat(member.state(), ": ", member.last_error());
    }
    return "not listed";
  }
};

TEST_F(Detection, AKilledRolloutCostsASecondAndIsNamedWithPhaseBucketAndAge) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(kLong));
  absl::SleepFor(kHeartbeat);
  kill(pid(), SIGKILL);
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  RecordProperty("unblocked_ms", static_cast<int>(absl::ToInt64Milliseconds(published->at - begun)));
  EXPECT_LT(published->at - begun, Scaled(kKilled));
  EXPECT_TRUE(published->ok()) << published->message;
  const std::string bucket = absl::StrCat("bucket ", group_->buckets() / 2);
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-1"), HasSubstr("was lost in phase receive, " + bucket),
                                        ContainsRegex("last heard of [0-9.]+ s before")));
  EXPECT_THAT(LastErrorOf("rollout-1"), AllOf(HasSubstr("lost: "), HasSubstr("phase receive, " + bucket),
                                              ContainsRegex("last heard of [0-9.]+ s before")));
  EXPECT_TRUE(group_->CheckContent(0, {2}, false).ok());
}

TEST_F(Detection, AStoppedRolloutCostsFiveSecondsAndIsNamed) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(kLong));
  absl::SleepFor(kHeartbeat);
  ASSERT_NO_FATAL_FAILURE(Stop(pid()));
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  RecordProperty("unblocked_ms", static_cast<int>(absl::ToInt64Milliseconds(published->at - begun)));
  EXPECT_LT(published->at - begun, Scaled(kStopped));
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-1"), HasSubstr("was lost in phase receive, bucket"),
                                        HasSubstr("no heartbeat for 3")));
  EXPECT_TRUE(group_->CheckContent(0, {2}, false).ok());
  kill(pid(), SIGCONT);
  EXPECT_TRUE(group_->AwaitVersion(1, 2, Scaled(absl::Seconds(15))).ok());
}

TEST_F(Detection, TheOnlyRolloutsDeathFailsThePublishWithinASecond) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 1}));
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(kLong));
  absl::SleepFor(kHeartbeat);
  kill(pid(), SIGKILL);
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_LT(published->at - begun, Scaled(kKilled));
  EXPECT_EQ(published->code, absl::StatusCode::kUnavailable);
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-0"), HasSubstr("phase receive, bucket")));
}

// Nobody starts it again, and its weights were not released when it went.
TEST_F(Detection, AKilledTrainerAgentCostsASecondAndIsNamedWithPhaseAndAge) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .trainer_flags = {{"transfer.source_mode", "ring"}}}));
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(kLong));
  absl::SleepFor(kHeartbeat);
  kill(group_->agents().trainer_pid(), SIGKILL);
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  RecordProperty("unblocked_ms", static_cast<int>(absl::ToInt64Milliseconds(published->at - begun)));
  EXPECT_LT(published->at - begun, Scaled(kKilled));
  EXPECT_EQ(published->code, absl::StatusCode::kUnavailable);
  EXPECT_THAT(published->message, ContainsRegex("wsync-trainer at unix:.* was lost in phase [a-z]+ of version 2, last "
                                                "heard of [0-9.]+ s before"));
}

TEST_F(Detection, AStoppedTrainerAgentCostsFiveSecondsAndIsNamedWithPhaseAndAge) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .trainer_flags = {{"transfer.source_mode", "ring"}}}));
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(kLong));
  absl::SleepFor(kHeartbeat);
  ASSERT_NO_FATAL_FAILURE(Stop(group_->agents().trainer_pid()));
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  RecordProperty("unblocked_ms", static_cast<int>(absl::ToInt64Milliseconds(published->at - begun)));
  EXPECT_LT(published->at - begun, Scaled(kStopped));
  EXPECT_EQ(published->code, absl::StatusCode::kUnavailable);
  EXPECT_THAT(published->message, ContainsRegex("wsync-trainer at unix:.* was lost in phase [a-z]+ of version 2, last "
                                                "heard of [34]"));
  kill(group_->agents().trainer_pid(), SIGCONT);
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
}

// The weights are the only copy then: they are read again for whoever is left, and given back after that.
TEST_F(Detection, InRingModeARolloutThatIsLostBeforeReleaseCostsTheOthersNothing) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .trainer_flags = {{"transfer.source_mode", "ring"}}}));
  group_->trainer().Forget();
  constexpr absl::Duration kHeld = absl::Seconds(1);
  ASSERT_NO_FATAL_FAILURE(HoldSource(kHeld));
  EXPECT_FALSE(group_->trainer().Said("released"));
  kill(pid(), SIGKILL);
  const absl::Time begun = MonotonicNow();
  ASSERT_TRUE(group_->trainer().Await("released", Scaled(kHardLimit)).has_value());
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_LT(published->at - begun, Scaled(kHeld + kKilled));
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-1"), HasSubstr("was lost in phase")));
  EXPECT_TRUE(group_->CheckContent(0, {2}, false).ok());
}

// The weights are others by then: whoever has everything keeps it, since nothing can be sent again.
TEST_F(Detection, InRingModeARolloutThatIsLostAfterReleaseCostsTheOthersNothing) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .trainer_flags = {{"transfer.source_mode", "ring"}}}));
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(kLong));
  ASSERT_TRUE(group_->trainer().Await("released", Scaled(kHardLimit)).has_value());
  kill(pid(), SIGKILL);
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_LT(published->at - begun, Scaled(kKilled));
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-1"), HasSubstr("was lost in phase receive")));
  EXPECT_TRUE(group_->CheckContent(0, {2}, false).ok());
}

TEST_F(Detection, AKilledEngineIsNoticedAtOnce) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  group_->engine(1).Tell(absl::StrCat("at pause ", static_cast<int>(Fault::kHang), " 0"));
  ASSERT_TRUE(group_->engine(1).Await("armed", Scaled(absl::Seconds(5))).has_value());
  group_->BeginPublish(2);
  ASSERT_TRUE(group_->engine(1).Await("fault pause", Scaled(absl::Seconds(10))).has_value());
  const absl::Time begun = MonotonicNow();
  group_->engine(1).Signal(SIGKILL);
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_LT(published->at - begun, Scaled(kKilled));
  EXPECT_TRUE(published->ok());
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-1"), HasSubstr("phase pause"), HasSubstr("engine-1")));
}

// It lives, and answers pings meanwhile: what was found was a client library that did not while its caller was busy,
// so that an engine which took four seconds to pause lost its attachment.
TEST_F(Detection, AnEngineThatNeverPausesIsLeftOutWithinTenSeconds) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  group_->engine(1).Tell(absl::StrCat("at pause ", static_cast<int>(Fault::kHang), " 0"));
  ASSERT_TRUE(group_->engine(1).Await("armed", Scaled(absl::Seconds(5))).has_value());
  const auto published = group_->Publish(2, Scaled(kHardLimit + absl::Seconds(2)));
  ASSERT_TRUE(published.has_value());
  EXPECT_LT(published->took, Scaled(kHardLimit));
  EXPECT_TRUE(published->ok());
  EXPECT_THAT(published->message, AllOf(HasSubstr("rollout-1"), HasSubstr("did not apply in time in phase pause")));
  EXPECT_TRUE(group_->CheckContent(0, {2}, false).ok());
}

// It paused, and does not hear that the version is applied: the next one does not get it to pause.
TEST_F(Detection, AnEngineThatNeverResumesCostsTheNextVersionItsReplicaOnly) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  group_->engine(1).Tell(absl::StrCat("at paused ", static_cast<int>(Fault::kHang), " 0"));
  ASSERT_TRUE(group_->engine(1).Await("armed", Scaled(absl::Seconds(5))).has_value());
  const auto first = group_->Publish(2, Scaled(kHardLimit));
  ASSERT_TRUE(first.has_value());
  EXPECT_TRUE(first->ok()) << first->message;
  const auto next = group_->Publish(3, Scaled(kHardLimit + absl::Seconds(2)));
  ASSERT_TRUE(next.has_value());
  EXPECT_LT(next->took, Scaled(kHardLimit));
  EXPECT_TRUE(next->ok()) << next->message;
  EXPECT_THAT(next->message, AllOf(HasSubstr("rollout-1"), HasSubstr("did not apply in time in phase pause")));
  EXPECT_TRUE(group_->CheckContent(0, {3}, false).ok());
  std::printf("RESOURCE|engine that never resumes|committed|%.2f\n", absl::ToDoubleSeconds(next->took));
  ASSERT_TRUE(group_->StartEngine(1).ok());
  EXPECT_TRUE(group_->AwaitVersion(1, 3, Scaled(absl::Seconds(10))).ok());
}

TEST_F(Detection, ATrainingProcessThatDiesBeforeReleaseTakesItsVersionWithIt) {
  // In ring mode nothing is released before all of it is on the wire, which is held half-way.
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .trainer_flags = {{"transfer.source_mode", "ring"}}}));
  ASSERT_NO_FATAL_FAILURE(HoldSource(absl::Seconds(1)));
  group_->trainer().Signal(SIGKILL);
  const auto idle = group_->agents().WaitFor(
      [](const v1::JobStatus& s) { return !s.has_round() && s.members(0).state() != "syncing"; },
      Scaled(absl::Seconds(3)), "idle");
  ASSERT_TRUE(idle.ok()) << idle.status();
  EXPECT_EQ(group_->agents().Status()->last_version().version(), 1u);
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(group_->CheckContent(i, {1}, false).ok()) << i;
  ASSERT_TRUE(group_->StartTrainerProcess().ok());
  ASSERT_TRUE(group_->trainer().Await("registered", Scaled(absl::Seconds(10))).has_value());
  ASSERT_TRUE(group_->AwaitReady(Scaled(absl::Seconds(10))).ok());
  const auto next = group_->Publish(3, Scaled(kHardLimit));
  ASSERT_TRUE(next.has_value());
  EXPECT_TRUE(next->ok()) << next->message;
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(group_->AwaitVersion(i, 3, Scaled(absl::Seconds(5))).ok());
}

// It cannot know whether the training process still waits, and has changed nothing. That one knows.
TEST_F(Detection, AVersionDuringWhichTheTrainerAgentStoodStillIsPublishedAgainByItsClient) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .trainer_flags = {{"transfer.source_mode", "ring"}}}));
  ASSERT_NO_FATAL_FAILURE(HoldSource(absl::Seconds(1)));
  const pid_t agent = group_->agents().trainer_pid();
  ASSERT_NO_FATAL_FAILURE(Stop(agent));
  absl::SleepFor(absl::Milliseconds(2500));
  kill(agent, SIGCONT);
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_TRUE(published->ok()) << published->message;
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(group_->AwaitVersion(i, 2, Scaled(absl::Seconds(5))).ok()) << i;
  const auto status = group_->agents().Status();
  ASSERT_TRUE(status.ok()) << status.status();
  const auto called_off = [](const v1::StatusEvent& event) {
    return absl::StrContains(event.text(), "stood still for 2.") ||
           absl::StrContains(event.text(), "stood still for 3.");
  };
  EXPECT_EQ(std::count_if(status->events().begin(), status->events().end(), called_off), 1);
}

}  // namespace
}  // namespace wsync::faults
