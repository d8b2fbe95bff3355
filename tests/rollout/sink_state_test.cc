// The sink's mind, event by event, without any I/O: a version from begin to applied.
#include "server/rollout/sink_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/rollout/sink_state_testing.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(SinkStateTest, StagedVersionGoesFromBeginToAppliedWithTwoReports) {
  MakeReady();
  EXPECT_THAT(Step(Begin(1, 7)), ElementsAre("-> prepare 7", "connect 7"));
  EXPECT_THAT(Step(sink::Connected{}), ElementsAre("receive 7"));
  EXPECT_THAT(Step(sink::Received{.digest = kContent}), ElementsAre("staged 7"));
  EXPECT_EQ(state_->serving().version, 0u);
  EXPECT_THAT(Step(sink::Commit{1, 7, kContent}), ElementsAre("-> apply 7"));
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "applied 7"));
  EXPECT_EQ(state_->serving(), (ServedVersion{7, kContent}));
}

TEST_F(SinkStateTest, PauseTimeIsFromPausedToApplied) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  now_ += absl::Seconds(2);
  Step(sink::EnginePaused{7});
  now_ += absl::Milliseconds(5);
  Step(sink::ApplyDone{.apply = absl::Milliseconds(4)});
  const auto& applied = std::get<sink::TellApplied>(last_.front());
  EXPECT_EQ(applied.timings.pause, absl::Milliseconds(5));
  EXPECT_EQ(applied.timings.apply, absl::Milliseconds(4));
}

TEST_F(SinkStateTest, CommitOfOtherContentFailsTheVersionAndServesTheOldOne) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  EXPECT_THAT(Step(sink::Commit{2, 7, Hash128{9, 9}}), ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_EQ(LastFailed()->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(state_->serving().version, 6u);
}

TEST_F(SinkStateTest, CorruptedBucketFailsNamingBucketAndPhase) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(sink::Received{.status = absl::DataLossError("bad rows"), .bucket = 3}),
              ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_EQ(LastFailed()->bucket, 3);
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kReceive);
}

TEST_F(SinkStateTest, AnotherPlanIsRefusedNamingBothHashes) {
  MakeReady();
  sink::Begin begin = Begin(1, 7);
  begin.plan_hash = Hash128{5, 5};
  EXPECT_THAT(Step(begin), ElementsAre("failed 7"));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr(begin.plan_hash.Hex()));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr(kPlan.Hex()));
}

TEST_F(SinkStateTest, BeginWhileNotReadyFailsWithTheReason) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  EXPECT_THAT(Step(Begin(1, 7)), ElementsAre("failed 7"));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr("no engine attached"));
  // That is no refusal: it was FAILED_PRECONDITION in phase idle, and a version failed for everybody whose engine died
  // just before it.
  EXPECT_EQ(LastFailed()->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kConnect);
}

TEST_F(SinkStateTest, AbortMidReceiveCancelsAndKeepsTheOldVersion) {
  MakeReady();
  Serve(1, 6);
  Receive(2, 7);
  EXPECT_THAT(Step(sink::Abort{2, 7, absl::AbortedError("rollout-1 is gone")}), ElementsAre("cancel"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("rollout-1 is gone")}), ElementsAre("-> cancelled 7"));
  EXPECT_EQ(state_->serving().version, 6u);
  EXPECT_FALSE(state_->busy());
}

TEST_F(SinkStateTest, MessagesOfAnOldEpochChangeNothing) {
  MakeReady();
  Receive(5, 7);
  EXPECT_THAT(Step(Begin(4, 6)), IsEmpty());
  EXPECT_THAT(Step(sink::Abort{4, 6, absl::AbortedError("old")}), IsEmpty());
  EXPECT_THAT(Step(sink::Abort{4, 7, absl::AbortedError("old")}), IsEmpty());
  Step(sink::Received{.digest = kContent});
  EXPECT_THAT(Step(sink::Commit{4, 7, kContent}), IsEmpty());
  EXPECT_EQ(state_->phase(), MemberPhase::kStaged);
}

TEST_F(SinkStateTest, NewerEpochAbortsTheOlderAndStartsWhenItHasWoundDown) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(Begin(2, 8)), ElementsAre("cancel"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x")}),
              ElementsAre("-> cancelled 7", "-> prepare 8", "connect 8"));
}

TEST_F(SinkStateTest, AbortOfTheWaitingEpochDropsIt) {
  MakeReady();
  Receive(1, 7);
  Step(Begin(2, 8));
  EXPECT_THAT(Step(sink::Abort{2, 8, absl::AbortedError("x")}), IsEmpty());
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x")}), ElementsAre("-> cancelled 7"));
  EXPECT_FALSE(state_->busy());
}

TEST_F(SinkStateTest, EngineThatDoesNotPauseFailsTheVersionButKeepsServing) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  Commit(2, 7);
  now_ = state_->NextDeadline();
  EXPECT_THAT(Step(sink::Tick{}), ElementsAre("failed 7"));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr("vllm (pid 1) did not pause"));
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kPause);
  EXPECT_EQ(state_->serving().version, 6u);
  // The late answer is let go of, not applied to.
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7"));
}

TEST_F(SinkStateTest, LateAnswerToAVoidRequestNeverCountsForALaterOneOfTheSameVersion) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::Abort{1, 7, absl::AbortedError("apply deadline")});
  Stage(2, 7);
  // The engine is still at the first request: there is no second one, so its one answer means one pause.
  EXPECT_THAT(Step(sink::Commit{2, 7, kContent}), IsEmpty());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
}

TEST_F(SinkStateTest, OpenRequestIsAnsweredBeforeAnotherVersionAsks) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::Abort{1, 7, absl::AbortedError("apply deadline")});
  Stage(2, 8);
  EXPECT_THAT(Step(sink::Commit{2, 8, kContent}), IsEmpty());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7", "-> apply 8"));
  EXPECT_THAT(Step(sink::EnginePaused{8}), ElementsAre("apply 8"));
}

TEST_F(SinkStateTest, PauseNobodyAskedForIsIgnored) {
  MakeReady();
  EXPECT_THAT(Step(sink::EnginePaused{7}), IsEmpty());
  Receive(1, 7);
  EXPECT_THAT(Step(sink::EnginePaused{7}), IsEmpty());
}

TEST_F(SinkStateTest, ApplyIsNotCancelledHalfWay) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Abort{1, 7, absl::AbortedError("too late")}), IsEmpty());
  // The round is over for the coordinator: it learns what is served from Ready.
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "ready serving 7"));
}

TEST_F(SinkStateTest, FailedApplyIsTornUntilACompleteVersion) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  Commit(2, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::ApplyDone{.status = absl::InternalError("copy failed")}),
              ElementsAre("failed torn 7", "-> torn 7"));
  EXPECT_TRUE(state_->torn());
  EXPECT_EQ(state_->serving().version, 0u);
  Serve(3, 8);
  EXPECT_FALSE(state_->torn());
}

TEST_F(SinkStateTest, ApplyThatWroteNothingIsCancelledAndTheOldVersionIsServedOn) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  Commit(2, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::ApplyDone{.status = absl::DeadlineExceededError("the engine's stream"), .wrote = false}),
              ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_FALSE(state_->torn());
  EXPECT_EQ(state_->serving().version, 6u);
}

TEST_F(SinkStateTest, StopGivesUpATransferAndFinishesAnApply) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(sink::Stop{}), ElementsAre("cancel", "not ready serving 0"));
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x")}), ElementsAre("-> cancelled 7"));

  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Stop{}), ElementsAre("not ready serving 0"));
  EXPECT_TRUE(state_->busy());
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "applied 7"));
  EXPECT_FALSE(state_->busy());
}

}  // namespace
}  // namespace wsync
