// A version on its way through the agent, from begin to applied or to what went wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "server/core/layers.h"
#include "server/rollout/rollout_agent.h"
#include "server/rpc/convert.h"
#include "tests/rollout/rollout_agent_testing.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(RolloutAgentTest, VersionCostsFourMessagesAndReachesTheEngine) {
  MakeReady();
  Serve(1, 6);
  const size_t before = coordinator_->rounds_log().size();
  Serve(1, 7);
  std::vector<std::string> log = coordinator_->rounds_log();
  log.erase(log.begin(), log.begin() + static_cast<int64_t>(before));
  EXPECT_THAT(log, ElementsAre("staged", "applied"));  // begin and commit went the other way
}

TEST_F(RolloutAgentTest, CorruptedBucketFailsAndTheOldVersionStays) {
  MakeReady();
  Serve(1, 6);
  script_.SetVersion(7);
  script_.Corrupt(2);
  coordinator_->Begin(1, 7, *plan_);
  const v1::Failed failed = coordinator_->AwaitFailed();
  EXPECT_EQ(failed.code(), static_cast<int32_t>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(failed.bucket(), 2);
  EXPECT_EQ(failed.phase(), v1::MEMBER_PHASE_RECEIVE);
  EXPECT_FALSE(failed.torn());
  EXPECT_TRUE(engine_->Next().has_prepare());
  EXPECT_EQ(engine_->Next().cancelled().version(), 7u);
  EXPECT_TRUE(EngineHolds(6));
}

TEST_F(RolloutAgentTest, CommitOfAnotherDigestFails) {
  MakeReady();
  Stage(1, 7);
  coordinator_->Commit(1, 7, Hash128{1, 1});
  EXPECT_EQ(coordinator_->AwaitFailed().code(), static_cast<int32_t>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(engine_->Next().cancelled().version(), 7u);
}

TEST_F(RolloutAgentTest, AbortedReceiveLeavesTheOldVersionServing) {
  MakeReady();
  Serve(1, 6);
  script_.DeliverUpTo(2);
  script_.SetVersion(7);
  coordinator_->Begin(2, 7, *plan_);
  AwaitDelivered(2);
  coordinator_->Abort(2, 7, "rollout-1 is gone");
  EXPECT_TRUE(engine_->Next().has_prepare());
  const v1::UpdateEvent event = engine_->Next();
  EXPECT_EQ(event.cancelled().version(), 7u);
  EXPECT_THAT(event.cancelled().reason(), HasSubstr("rollout-1 is gone"));
  EXPECT_TRUE(EngineHolds(6));
  script_.DeliverUpTo(Script::kAll);
  Serve(3, 8);
}

TEST_F(RolloutAgentTest, InPlaceFailureTearsAndACompleteVersionMends) {
  MakeReady("in_place");
  script_.SetVersion(7);
  script_.Corrupt(3);
  coordinator_->Begin(1, 7, *plan_);
  EXPECT_TRUE(engine_->Next().prepare().in_place());
  engine_->Paused(7);
  EXPECT_TRUE(coordinator_->AwaitFailed().torn());
  EXPECT_EQ(engine_->Next().torn().version(), 7u);

  script_.SetVersion(8);
  coordinator_->Begin(2, 8, *plan_);
  EXPECT_TRUE(engine_->Next().prepare().in_place());
  engine_->Paused(8);
  coordinator_->AwaitStaged();
  coordinator_->Commit(2, 8, ContentOf(8));
  EXPECT_EQ(engine_->Next().applied().version(), 8u);
  coordinator_->AwaitApplied();
  EXPECT_TRUE(EngineHolds(8));
}

TEST_F(RolloutAgentTest, LayersAreToldBetweenPrepareAndAppliedAndAnewForEveryVersion) {
  StartAgent("in_place");
  Join();
  engine_.emplace(agent_->local_address());
  v1::AttachRequest request = Request();
  request.mutable_header()->set_layer_events(true);
  ASSERT_TRUE(engine_->Attach(request).ok());
  engine_->OpenUpdates();
  coordinator_->AwaitReady(true);
  for (const uint64_t version : {7, 8}) {
    script_.SetVersion(version);
    coordinator_->Begin(version, version, *plan_);
    EXPECT_TRUE(engine_->Next().prepare().in_place());
    engine_->Paused(version);
    coordinator_->AwaitStaged();
    std::set<std::string> layers;
    int64_t ready = 0;
    for (const int64_t all = LayerMap(*plan_).names().size(); ready < all;) {
      const v1::UpdateEvent event = engine_->Next();
      ASSERT_TRUE(event.has_layer_ready()) << event.ShortDebugString();
      EXPECT_EQ(event.layer_ready().version(), version);
      EXPECT_EQ(event.layer_ready().ready(), ++ready);
      layers.insert(event.layer_ready().layer());
    }
    EXPECT_EQ(layers.count("model.layers.0"), 1u);
    EXPECT_EQ(static_cast<int64_t>(layers.size()), ready);
    EXPECT_TRUE(EngineHolds(version));
    coordinator_->Commit(version, version, ContentOf(version));
    EXPECT_EQ(engine_->Next().applied().version(), version);
    coordinator_->AwaitApplied();
  }
}

TEST_F(RolloutAgentTest, NothingIsWrittenAndNobodyHearsOfItBeforeTheEnginesStreamGotToItsPause) {
  MakeReady();
  const auto after = script_.events.Lend("after");
  Stage(1, 7);
  coordinator_->Commit(1, 7, ContentOf(7));
  EXPECT_EQ(engine_->Next().apply().version(), 7u);
  engine_->PausedOnStream(7, "after", FakeClientEvents::kUuid);
  ASSERT_TRUE(after->IsAwaited()) << "it waits";
  const std::vector<std::string> log = coordinator_->rounds_log();
  EXPECT_EQ(std::count(log.begin(), log.end(), "applied"), 0);
  EXPECT_FALSE(EngineHolds(7));
  after->Come();
  EXPECT_EQ(engine_->Next().applied().version(), 7u);
  EXPECT_EQ(coordinator_->AwaitApplied().version(), 7u);
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(RolloutAgentTest, AnEngineWithAnEventOfAnotherGpuIsLetGoWithTheReasonAndMayComeBack) {
  MakeReady();
  Stage(1, 7);
  coordinator_->Commit(1, 7, ContentOf(7));
  EXPECT_EQ(engine_->Next().apply().version(), 7u);
  engine_->PausedOnStream(7, "after", "GPU-other");
  const grpc::Status end = engine_->End();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(end.error_message(), HasSubstr("GPU-other"));
  coordinator_->AwaitReady(false);
  AttachEngine();
  EXPECT_EQ(engine_->Next().apply().version(), 7u);
  engine_->Paused(7);
  EXPECT_EQ(engine_->Next().applied().version(), 7u);
  EXPECT_TRUE(EngineHolds(7));
}

}  // namespace
}  // namespace wsync
