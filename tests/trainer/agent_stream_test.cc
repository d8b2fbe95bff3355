// The trainer agent over real gRPC: publishes that are ordered against a CUDA stream of the training process.
#include <gmock/gmock.h>

#include "tests/trainer/agent_testing.h"
#include "tests/trainer/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;
using Event = v1::PublishEvent;

class AgentStreamTest : public AgentTest {
 protected:
  static v1::PublishRequest Ordered(const std::string& id, uint64_t version,
                                    const std::string& uuid = FakeClientEvents::kUuid) {
    v1::PublishRequest request;
    request.set_registration_id(id);
    request.set_version(version);
    request.mutable_after()->set_handle("after");
    request.mutable_after()->set_device_uuid(uuid);
    return request;
  }
};

TEST_F(AgentStreamTest, WeightsAreReadAndReleasedWhenTheTrainersStreamGotThere) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  const auto after = backend_->LendEvent("after");
  auto publish = Publish(Ordered(id, 7));
  const v1::Begin begin = member->Await(TestMember::Case::kBegin).begin();
  ASSERT_TRUE(after->IsAwaited());
  EXPECT_EQ(backend_->encodes(), 0);
  after->Come();
  publish->AwaitEvent(Event::kReleased);
  const v1::Hash content = ContentOf(2);
  member->Staged(begin, content);
  member->Await(TestMember::Case::kCommit);
  member->Applied(begin, content);
  const PublishOutcome outcome = publish->Join();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Count(Event::kReleased), 1);
}

// The weights are the only copy: they are read again, in the same order, and given back once the last bucket of that is
// sent.
TEST_F(AgentStreamTest, InRingModeAMemberThatIsLostBeforeReleaseHasTheWeightsReadAgain) {
  v1::TrainerConfig config = TestConfig();
  config.mutable_transfer()->set_source_mode("ring");
  config.mutable_transfer()->set_ring_slots(2);
  StartAgent(config);
  const std::string id = RegisterOk(2);
  auto a = NewMember();
  auto b = NewMember();
  a->JoinAndGetReady("a");
  b->JoinAndGetReady("b");
  ASSERT_TRUE(Eventually([&] { return Status().members(2).state() == "ready"; }));
  const auto after = backend_->LendEvent("after");
  backend_->HoldSends(true);
  auto publish = Publish(Ordered(id, 7));
  a->Await(TestMember::Case::kBegin);
  after->Come();
  ASSERT_TRUE(Eventually([&] { return backend_->encodes() == 2; }));
  b->HangUp();
  const v1::Begin again = a->Await(TestMember::Case::kBegin, 1).begin();
  ASSERT_TRUE(Eventually([&] { return backend_->encodes() == 4; }));
  EXPECT_FALSE(publish->Told(Event::kReleased));
  const v1::Hash content = ContentOf(2);
  backend_->HoldSends(false);
  publish->AwaitEvent(Event::kReleased);
  a->Staged(again, content);
  a->Await(TestMember::Case::kCommit);
  a->Applied(again, content);
  const PublishOutcome outcome = publish->Join();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Count(Event::kReleased), 1);
  EXPECT_EQ(outcome.report().replicas(1).outcome(), v1::OUTCOME_LEFT_OUT);
}

TEST_F(AgentStreamTest, AStreamThatNeverGetsThereIsNamedAndTheMemberIsNotBlamed) {
  v1::TrainerConfig config = TestConfig();
  config.mutable_coordinator()->set_stage_timeout_ms(500);
  StartAgent(config);
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  backend_->LendEvent("after");
  const PublishOutcome outcome = Publish(Ordered(id, 7))->Join();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << outcome.status.error_message();
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("stream did not get to the point of its publish within 400ms"));
  EXPECT_EQ(outcome.status.error_message().find("'a'"), std::string::npos) << outcome.status.error_message();
  EXPECT_TRUE(Sync(id, 7, {member.get()}, ContentOf(2), 1).status.ok()) << "the number may be used again";
}

TEST_F(AgentStreamTest, EventsThatTheDeviceCannotTakeAreRefusedBeforeTheRoundBegins) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  const PublishOutcome outcome = Publish(Ordered(id, 7, "GPU-other"))->Join();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("GPU-other"));
  EXPECT_EQ(member->Count(TestMember::Case::kBegin), 0u);
}

// It was refused, though the same publish without a stream joins.
TEST_F(AgentStreamTest, APublishMadeAgainWithAStreamJoinsTheRunningOneAndKeepsItsOrder) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  const auto after = backend_->LendEvent("after");
  auto first = Publish(Ordered(id, 7));
  ASSERT_TRUE(after->IsAwaited());
  auto second = Publish(Ordered(id, 7));
  auto unordered = Publish(id, 7);
  after->Come();
  for (auto* call : {&first, &second, &unordered}) (*call)->AwaitEvent(Event::kReleased);
}

TEST_F(AgentStreamTest, AnEventThatTheDeviceCannotTakeIsRefusedOfWhoJoinsAsWell) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto first = Publish(id, 7);
  first->AwaitEvent(Event::kReleased);
  EXPECT_EQ(Publish(Ordered(id, 7, "GPU-other"))->Join().status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace wsync
