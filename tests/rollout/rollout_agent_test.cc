// The agent with its coordinator: how it joins, what it says of itself, how it stops.
#include "server/rollout/rollout_agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/rpc/version.h"
#include "tests/rollout/rollout_agent_testing.h"

namespace wsync {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

TEST_F(RolloutAgentTest, JoinSaysWhoIsThere) {
  StartAgent();
  StartCoordinator();
  const v1::Join join = coordinator_->AwaitJoin();
  EXPECT_EQ(join.protocol(), kProtocolVersion);
  EXPECT_EQ(join.job(), "job");
  EXPECT_EQ(join.name(), "replica-0/0");
  EXPECT_EQ(join.backend(), "fake");
  EXPECT_EQ(join.pid(), getpid());
  EXPECT_THAT(join.software(), HasSubstr("wsync "));
  EXPECT_EQ(join.serving().version(), 0u);
}

// By them a new connection is known to be of the same process, and only by them.
TEST_F(RolloutAgentTest, EachProcessHasAnIncarnationOfItsOwnAndKeepsIt) {
  StartAgent();
  StartCoordinator();
  const std::string first = coordinator_->AwaitJoin().incarnation();
  EXPECT_EQ(first.size(), 16u);
  coordinator_.reset();
  StartCoordinator();
  EXPECT_EQ(coordinator_->AwaitJoin().incarnation(), first);
  agent_.reset();
  StartAgent();
  EXPECT_NE(coordinator_->AwaitJoin().incarnation(), first);
}

TEST_F(RolloutAgentTest, RestartedCoordinatorLearnsTheServingVersion) {
  MakeReady();
  Serve(5, 7);
  coordinator_.reset();
  StartCoordinator();
  const v1::Join join = coordinator_->AwaitJoin();
  EXPECT_EQ(join.serving().version(), 7u);
  EXPECT_EQ(join.group(), 1) << "that coordinator waits a moment for as many";
  coordinator_->Welcome();
  coordinator_->SendCatalog(*plan_);
  EXPECT_EQ(coordinator_->AwaitReady(true).serving().version(), 7u);
  Serve(1, 8);
}

TEST_F(RolloutAgentTest, SilentCoordinatorIsLeftAndDialledAgain) {
  StartAgent();
  Join(/*heartbeat_timeout_ms=*/300);
  EXPECT_TRUE(coordinator_->AwaitHeartbeats(3));
  coordinator_->AnswerHeartbeats(false);
  coordinator_->AwaitJoin();
}

// It stayed out until it or its coordinator was started again.
TEST_F(RolloutAgentTest, SinkWithoutMemorySaysSoAndTakesPartOnceThereIsSome) {
  script_.FailAllocation(true);
  StartAgent();
  Join();
  coordinator_->Await(
      [](const auto& m) { return m.has_ready() && m.ready().reason().find("staging copy") != std::string::npos; });
  script_.FailAllocation(false);
  AttachEngine();
  coordinator_->AwaitReady(true);
  Serve(1, 1);
}

TEST_F(RolloutAgentTest, AnotherPlanHashMakesTheSinkNotReadyNamingBoth) {
  StartAgent();
  StartCoordinator();
  coordinator_->AwaitJoin();
  coordinator_->Welcome();
  v1::CoordinatorMessage message;
  v1::CatalogChunk* chunk = message.mutable_catalog();
  for (const Tensor& tensor : plan_->catalog().tensors()) *chunk->add_tensors() = ToProto(tensor);
  chunk->set_first(true);
  chunk->set_last(true);
  *chunk->mutable_rules() = ToProto(plan_->rules());
  chunk->set_bucket_bytes(plan_->bucket_bytes());
  *chunk->mutable_catalog_fingerprint() = ToProto(plan_->catalog().fingerprint());
  *chunk->mutable_plan_hash() = ToProto(Hash128{1, 2});
  coordinator_->Send(message);
  const v1::MemberMessage ready = coordinator_->Await([](const auto& m) {
    return m.has_ready() && m.ready().reason().find("same wsync version") != std::string::npos;
  });
  EXPECT_THAT(ready.ready().reason(), HasSubstr(plan_->hash().Hex()));
  EXPECT_THAT(ready.ready().reason(), HasSubstr(Hash128({1, 2}).Hex()));
}

TEST_F(RolloutAgentTest, StopFinishesAnApplyLeavesAndLetsTheEngineGo) {
  MakeReady();
  Stage(1, 7);
  script_.HoldApply(true);
  coordinator_->Commit(1, 7, ContentOf(7));
  EXPECT_TRUE(engine_->Next().has_apply());
  engine_->Paused(7);
  AwaitHeldApply();
  auto stopped = std::async(std::launch::async, [&] { agent_->Stop(kPatience); });
  // Not ready any more, though the copy still runs.
  EXPECT_EQ(coordinator_->AwaitReady(false).reason(), "shutting down");
  script_.HoldApply(false);
  coordinator_->AwaitApplied();
  EXPECT_EQ(engine_->Next().applied().version(), 7u);
  EXPECT_TRUE(EngineHolds(7));
  EXPECT_TRUE(coordinator_->Await([](const auto& m) { return m.has_leave(); }).has_leave());
  EXPECT_EQ(engine_->End().error_code(), grpc::StatusCode::UNAVAILABLE);
  stopped.get();
}

TEST_F(RolloutAgentTest, StopWithoutACoordinatorEndsWaitingCalls) {
  StartAgent();
  ScriptedEngine engine(agent_->local_address());
  std::vector<v1::OutputsReply> replies;
  auto outputs = std::async(std::launch::async, [&] { return engine.GetOutputs(kPatience, &replies); });
  const absl::Time begin = MonotonicNow();
  agent_->Stop(absl::Seconds(1));
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(5));
  // Refused by the agent that drains, or cut off by its server when the call came later still.
  EXPECT_THAT(outputs.get().error_code(), AnyOf(grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::CANCELLED));
}

TEST_F(RolloutAgentTest, AgentsThatComeAndGoLeaveNothingBehind) {
  // The last channel of a process to go joins gRPC's callback threads, so it must never go on one of them.
  for (int i = 0; i < 20; ++i) {
    StartAgent();
    agent_.reset();
  }
}

TEST_F(RolloutAgentTest, TakenSocketIsAnErrorThatNamesIt) {
  StartAgent();
  v1::RolloutConfig config;
  config.set_local_socket(agent_->local_address());
  config.set_coordinator(coordinator_address_);
  const auto second = RolloutAgent::Start(config, NewFakeBackend(&script_), grpc::InsecureChannelCredentials());
  EXPECT_FALSE(second.ok());
  EXPECT_THAT(second.status().message(), HasSubstr("agent.sock"));
}

}  // namespace
}  // namespace wsync
