// The trainer agent over real gRPC: members that are refused, come, go, or do not read.
#include <gmock/gmock.h>

#include "tests/trainer/agent_testing.h"
#include "tests/trainer/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;
using Event = v1::PublishEvent;
using Message = v1::CoordinatorMessage;

class RefusedJoin : public AgentTest {
 protected:
  v1::Refused Try(const v1::MemberMessage& message) {
    StartAgent();
    auto member = NewMember();
    member->Send(message);
    const v1::Refused refused = member->Await(Message::kRefused).refused();
    EXPECT_FALSE(member->AwaitEnd().ok());
    EXPECT_EQ(Status().members_size(), 1) << "only the trainer itself";
    return refused;
  }
  v1::Refused TryJoin(const std::function<void(v1::Join&)>& change) {
    v1::MemberMessage message;
    *message.mutable_join() = TestMember::JoinOf("a");
    change(*message.mutable_join());
    return Try(message);
  }
};

TEST_F(RefusedJoin, OtherJobIsToldBothNames) {
  const v1::Refused refused = TryJoin([](v1::Join& join) { join.set_job("ppo"); });
  EXPECT_THAT(refused.error(), HasSubstr("'test'"));
  EXPECT_THAT(refused.error(), HasSubstr("'ppo'"));
  EXPECT_FALSE(refused.retry());
}

TEST_F(RefusedJoin, OtherProtocol) {
  EXPECT_THAT(TryJoin([](v1::Join& join) { join.set_protocol(99); }).error(), HasSubstr("speaks 99"));
}

TEST_F(RefusedJoin, OtherBackend) {
  EXPECT_THAT(TryJoin([](v1::Join& join) { join.set_backend("cuda"); }).error(), HasSubstr("'cuda'"));
}

TEST_F(RefusedJoin, RankOutsideItsReplica) {
  EXPECT_THAT(TryJoin([](v1::Join& join) { join.set_rank(1); }).error(), HasSubstr("rank 1 of 1"));
}

TEST_F(RefusedJoin, NameThatIsTooLong) {
  EXPECT_THAT(TryJoin([](v1::Join& join) { join.set_name(std::string(100000, 'x')); }).error(), HasSubstr("100000"));
}

TEST_F(RefusedJoin, FirstMessageThatIsNoJoin) {
  v1::MemberMessage message;
  message.mutable_staged()->set_epoch(1);
  EXPECT_THAT(Try(message).error(), HasSubstr("must be `join`"));
}

TEST_F(RefusedJoin, StreamThatNeverJoinsIsCutOff) {
  v1::TrainerConfig config = TestConfig();
  config.mutable_coordinator()->set_heartbeat_timeout_ms(100);
  StartAgent(config);
  auto member = NewMember();
  EXPECT_EQ(member->AwaitEnd().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(RefusedJoin, SecondJoinOnOneStreamEndsTheMembership) {
  StartAgent();
  auto member = NewMember();
  member->Join("a");
  member->Await(Message::kWelcome);
  member->Join("a");
  EXPECT_EQ(member->AwaitEnd().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(AgentTest, HeartbeatIsAnswered) {
  StartAgent();
  auto member = NewMember();
  member->Join("a");
  for (int i = 0; i < 20; ++i) member->Heartbeat();
  member->Await(Message::kHeartbeatAck, 19);
}

TEST_F(AgentTest, LostStreamFailsTheVersionAndNamesTheMember) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto a = NewMember();
  auto b = NewMember();
  a->JoinAndGetReady("a");
  b->JoinAndGetReady("b");
  ASSERT_TRUE(Eventually([&] { return Status().members(2).state() == "ready"; }));
  auto publish = Publish(id, 7);
  const v1::Begin begin = a->Await(Message::kBegin).begin();
  b->Await(Message::kBegin);
  b->HangUp();
  // The group re-forms without it, and the image is sent again.
  a->Await(Message::kAbort);
  const v1::Begin second = a->Await(Message::kBegin, 1).begin();
  EXPECT_GT(second.epoch(), begin.epoch());
  EXPECT_EQ(second.world(), 2);
  a->Staged(second, ContentOf(2));
  a->Await(Message::kCommit);
  a->Applied(second, ContentOf(2));
  const PublishOutcome outcome = publish->Join();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.Count(Event::kReleased), 1);
  ASSERT_EQ(outcome.report().replicas_size(), 2);
  EXPECT_EQ(outcome.report().replicas(1).outcome(), v1::OUTCOME_LEFT_OUT);
  EXPECT_EQ(backend_->encodes(), 2) << "one encoding of two buckets, sent twice";
}

TEST_F(AgentTest, MemberThatLeavesIsNotLost) {
  StartAgent();
  auto member = NewMember();
  member->Join("a");
  member->Await(Message::kWelcome);
  member->Leave();
  EXPECT_TRUE(member->AwaitEnd().ok());
  EXPECT_EQ(Status().members_size(), 1);
  EXPECT_THAT(Status().events(Status().events_size() - 1).text(), HasSubstr("going home"));
}

TEST_F(AgentTest, MemberThatDoesNotReadIsDisconnected) {
  StartAgent();
  // Heartbeat answers have to fill what flow control lets through unread, and then the queue behind it.
  grpc::ChannelArguments narrow;
  narrow.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 512);
  narrow.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto channel =
      grpc::CreateCustomChannel(agent_->coordinator_address(), grpc::InsecureChannelCredentials(), narrow);
  const auto stub = v1::Coordinator::NewStub(channel);
  grpc::ClientContext context;
  auto stream = stub->Member(&context);
  v1::MemberMessage message;
  *message.mutable_join() = TestMember::JoinOf("deaf");
  ASSERT_TRUE(stream->Write(message));
  message.mutable_heartbeat()->set_phase(v1::MEMBER_PHASE_IDLE);
  while (stream->Write(message)) {
  }
  v1::JobStatus status;
  ASSERT_TRUE(Eventually([&] {
    status = Status();
    return status.members_size() == 2 && status.members(1).state() == "lost";
  }));
  EXPECT_THAT(status.members(1).last_error(), HasSubstr("does not read"));
}

// The way out of a fence that is not a restart.
TEST_F(AgentTest, MemberThatCostsTwoVersionsIsFencedUntilSomebodyAsks) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto a = NewMember();
  auto liar = NewMember();
  a->JoinAndGetReady("a");
  liar->JoinAndGetReady("liar");
  ASSERT_TRUE(Eventually([&] { return Status().members(2).state() == "ready"; }));
  auto first = Publish(id, 7);
  liar->Failed(liar->Await(Message::kBegin).begin(), "it will not\nversion 7 committed");
  const grpc::Status lost = first->Join().status;
  EXPECT_EQ(lost.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(lost.error_message(), HasSubstr("liar"));
  EXPECT_THAT(lost.error_message(), ::testing::Not(HasSubstr("\nversion"))) << "it looks like a line of ours";
  auto second = Publish(id, 7);
  liar->Failed(liar->Await(Message::kBegin, 1).begin(), "it will not");
  const v1::Begin begin = a->Await(Message::kBegin, 2).begin();
  EXPECT_EQ(begin.world(), 2) << "without the other";
  a->Staged(begin, ContentOf(2));
  a->Await(Message::kCommit);
  a->Applied(begin, ContentOf(2));
  EXPECT_TRUE(second->Join().status.ok());
  EXPECT_EQ(Status().members(2).state(), "fenced");
  EXPECT_THAT(Status().members(2).last_error(), HasSubstr("wsync unfence liar"));

  const auto unfence = [this](const std::string& name, v1::UnfenceReply* reply) {
    grpc::ClientContext context;
    v1::UnfenceRequest request;
    request.set_name(name);
    return coordinator_->Unfence(&context, request, reply);
  };
  v1::UnfenceReply reply;
  const grpc::Status other = unfence("a", &reply);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(other.error_message(), HasSubstr("fenced are: liar"));
  ASSERT_TRUE(unfence("liar", &reply).ok());
  EXPECT_EQ(reply.names(0), "liar");
  EXPECT_NE(Status().members(2).state(), "fenced");
}

TEST_F(AgentTest, StreamsTokensDifferByRank) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto a = NewMember();
  auto b = NewMember();
  a->JoinAndGetReady("a");
  b->JoinAndGetReady("b");
  ASSERT_TRUE(Eventually([&] { return Status().members(2).state() == "ready"; }));
  auto publish = Publish(id, 7);
  EXPECT_NE(a->Await(Message::kBegin).begin().session_token(), b->Await(Message::kBegin).begin().session_token());
}

TEST_F(AgentTest, LateJoinerGetsTheCommittedVersionFromTheImage) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto a = NewMember();
  a->JoinAndGetReady("a");
  ASSERT_TRUE(Sync(id, 7, {a.get()}, ContentOf(2)).status.ok());
  auto late = NewMember();
  late->JoinAndGetReady("late");
  const v1::Begin begin = late->Await(Message::kBegin).begin();
  EXPECT_EQ(begin.version(), 7u);
  late->Staged(begin, ContentOf(2));
  late->Await(Message::kCommit);
  late->Applied(begin, ContentOf(2));
  EXPECT_TRUE(Eventually([&] { return Status().state() == v1::SYNC_STATE_IN_SYNC; }));
  EXPECT_EQ(backend_->encodes(), 2);
}

}  // namespace
}  // namespace wsync
