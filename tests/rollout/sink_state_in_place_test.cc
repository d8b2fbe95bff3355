// The sink's mind in place: the engine pauses first, and what fails after the first byte leaves it torn.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/rollout/sink_state_testing.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(SinkStateTest, InPlaceAsksForThePauseAtBeginReceivesMeanwhileAndWritesOnlyThen) {
  MakeReady(SinkMode::kInPlace);
  EXPECT_THAT(Step(Begin(1, 7)), ElementsAre("-> prepare 7 in place", "connect 7"));
  EXPECT_THAT(Step(sink::Connected{}), ElementsAre("receive 7"));
  EXPECT_EQ(state_->phase(), MemberPhase::kPause);
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("write 7"));
  EXPECT_EQ(state_->phase(), MemberPhase::kReceive);
  EXPECT_THAT(Step(sink::Received{.digest = kContent, .wrote = true}), ElementsAre("staged 7"));
  EXPECT_THAT(Step(sink::Commit{1, 7, kContent}), ElementsAre("-> applied 7", "applied 7"));
}

TEST_F(SinkStateTest, InPlacePauseMayComeBeforeTheConnection) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  EXPECT_THAT(Step(sink::EnginePaused{7}), IsEmpty());
  EXPECT_THAT(Step(sink::Connected{}), ElementsAre("receive 7", "write 7"));
}

TEST_F(SinkStateTest, InPlaceAnEngineThatDoesNotPauseFailsTheVersionUntouchedAndIsNamed) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::Connected{});
  now_ = state_->NextDeadline();
  EXPECT_THAT(Step(sink::Tick{}), ElementsAre("failed 7", "cancel"));
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kPause);
  EXPECT_THAT(std::string(LastFailed()->status.message()), HasSubstr("did not pause for version 7"));
  EXPECT_THAT(Step(sink::Received{.status = absl::CancelledError("x")}), IsEmpty());
  EXPECT_FALSE(state_->busy());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7"));
}

// A dead peer breaks the transport of a sink whose engine has not paused yet: that must not look like the sink's fault.
TEST_F(SinkStateTest, InPlaceABrokenSessionBeforeThePauseIsAFailureToReceive) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::Connected{});
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x")}), ElementsAre("failed 7"));
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kReceive);
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7"));
}

TEST_F(SinkStateTest, InPlaceAnEngineLostBeforeItPausedIsNotTorn) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::Connected{});
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("failed 7", "cancel", "not ready serving 0"));
}

TEST_F(SinkStateTest, InPlaceFailureBeforeTheFirstByteIsCancelled) {
  MakeReady(SinkMode::kInPlace);
  Receive(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x"), .wrote = false}),
              ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_FALSE(state_->torn());
}

TEST_F(SinkStateTest, InPlaceFailureAfterTheFirstByteIsTornAndACompleteVersionEndsIt) {
  MakeReady(SinkMode::kInPlace);
  Receive(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x"), .wrote = true}),
              ElementsAre("failed torn 7", "-> torn 7"));
  // A failure that touches nothing must not tell a torn engine to resume.
  Step(Begin(2, 8));
  EXPECT_THAT(Step(sink::Connected{absl::UnavailableError("y")}), ElementsAre("failed 8"));
  EXPECT_THAT(Step(sink::EnginePaused{8}), ElementsAre("-> torn 8"));

  Step(Begin(3, 9));
  Step(sink::EnginePaused{9});
  Step(sink::Connected{});
  Step(sink::Received{.digest = kContent, .wrote = true});
  EXPECT_THAT(Step(sink::Commit{3, 9, kContent}), ElementsAre("-> applied 9", "applied 9"));
  EXPECT_FALSE(state_->torn());
}

TEST_F(SinkStateTest, InPlaceAbortAfterStagingIsTornBecauseUncommittedBytesAreLive) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::EnginePaused{7});
  Step(sink::Connected{});
  Step(sink::Received{.digest = kContent, .wrote = true});
  EXPECT_THAT(Step(sink::Abort{1, 7, absl::AbortedError("x")}),
              ElementsAre("cancel", "-> torn 7", "ready torn serving 0"));
}

TEST_F(SinkStateTest, InPlaceAbortMidReceiveTellsTheEngineWhatTheReceiverFound) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::EnginePaused{7});
  Step(sink::Connected{});
  EXPECT_THAT(Step(sink::Abort{1, 7, absl::AbortedError("x")}), ElementsAre("cancel"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x"), .wrote = true}),
              ElementsAre("-> torn 7", "ready torn serving 0"));
}

}  // namespace
}  // namespace wsync
