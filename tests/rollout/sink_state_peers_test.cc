// The sink's mind as its engine, its coordinator and the catalog come and go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/rollout/sink_state_testing.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(SinkStateTest, RestartedEngineTakesTheStagedVersionAtOnceAndThenIsReady) {
  MakeReady();
  Serve(1, 7);
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("not ready serving 0"));
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("-> apply 7", "not ready serving 0"));
  EXPECT_THAT(NotReadyReason(), HasSubstr("applying version 7"));
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "ready serving 7"));
}

TEST_F(SinkStateTest, RestartedEngineGetsNoCopyThatANewVersionBeganToOverwrite) {
  MakeReady();
  Serve(1, 7);
  Receive(2, 8);
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("failed 8", "cancel", "not ready serving 0"));
  Step(sink::Received{.status = absl::UnavailableError("x")});
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("ready serving 0"));
}

TEST_F(SinkStateTest, RestartedEngineGetsNoCopyOfAnotherPlan) {
  MakeReady();
  Serve(1, 7);
  Step(sink::CatalogChanging{});
  Step(sink::PlanReady{absl::OkStatus(), Hash128{4, 4}, /*changed=*/true});
  Step(sink::EngineLost{"it died"});
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("ready serving 0"));
}

TEST_F(SinkStateTest, WhatBecameOfTheLastEngineIsToldUntilThereIsAnother) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  EXPECT_EQ(NotReadyReason(), "no engine attached");
  Attach();
  Step(sink::EngineLost{"the catalog changed"});
  EXPECT_EQ(NotReadyReason(), "no engine attached: engine vllm (pid 1) is gone: the catalog changed");
  Step(sink::CatalogGone{});
  EXPECT_EQ(NotReadyReason(), "no catalog yet; no engine attached: engine vllm (pid 1) is gone: the catalog changed");
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  Step(sink::EngineRefused{"vllm (pid 2)", "no destination for 'a.weight'"});
  EXPECT_EQ(NotReadyReason(), "no engine attached: engine vllm (pid 2) was refused: no destination for 'a.weight'");
  Attach();
  EXPECT_EQ(NotReadyReason(), "");
  Step(sink::CatalogGone{});
  EXPECT_EQ(NotReadyReason(), "no catalog yet");
}

TEST_F(SinkStateTest, EngineLostWhileApplyingIsTornForTheRoundAndFreshAfterwards) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("failed torn 7", "not ready serving 0"));
  EXPECT_THAT(Step(sink::ApplyDone{}), IsEmpty());
  // The copy was committed and is whole.
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("-> apply 7", "not ready serving 0"));
}

TEST_F(SinkStateTest, EngineThatNeverOpensItsStreamIsDetached) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  Step(sink::EngineAttached{"vllm (pid 1)"});
  EXPECT_EQ(state_->NextDeadline(), now_ + absl::Seconds(10));
  now_ = state_->NextDeadline();
  EXPECT_THAT(Step(sink::Tick{}), ElementsAre("detach", "not ready serving 0"));
  EXPECT_THAT(std::get<sink::Detach>(last_.front()).why.message(), HasSubstr("did not open Updates within 10s"));
}

TEST_F(SinkStateTest, LostCoordinatorEndsWhatWasNotCommitted) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  EXPECT_THAT(Step(sink::Unlinked{"silence"}), ElementsAre("cancel", "-> cancelled 7"));
  EXPECT_EQ(state_->serving().version, 6u);
}

TEST_F(SinkStateTest, CommittedVersionIsAppliedThoughTheCoordinatorIsGone) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  EXPECT_THAT(Step(sink::Unlinked{"silence"}), IsEmpty());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7"));
  EXPECT_EQ(state_->serving().version, 7u);
}

TEST_F(SinkStateTest, RestartedCoordinatorMayCountEpochsFromOneAgain) {
  MakeReady();
  Serve(9, 7);
  Step(sink::Unlinked{"restart"});
  Step(sink::Linked{});
  EXPECT_EQ(state_->not_ready(), "no catalog yet");
  Step(sink::CatalogChanging{});
  EXPECT_THAT(Step(sink::PlanReady{absl::OkStatus(), kPlan, /*changed=*/false}), ElementsAre("ready serving 7"));
  EXPECT_THAT(Step(Begin(1, 8)), ElementsAre("-> prepare 8", "connect 8"));
}

TEST_F(SinkStateTest, PlanThatCannotBeMadeIsTheReason) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::CatalogChanging{});
  EXPECT_THAT(Step(sink::PlanReady{absl::ResourceExhaustedError("8 GiB for the staging copy"), kPlan}),
              ElementsAre("not ready serving 0"));
  EXPECT_EQ(NotReadyReason(), "8 GiB for the staging copy");
}

TEST_F(SinkStateTest, CatalogChangeEndsTheRoundQuietly) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(sink::CatalogChanging{}), ElementsAre("cancel", "not ready serving 0"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x")}), ElementsAre("-> cancelled 7"));
}

}  // namespace
}  // namespace wsync
