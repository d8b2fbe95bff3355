// The trainer agent over real gRPC, with scripted sinks: the protocol, message by message.
#include <gmock/gmock.h>

#include "tests/trainer/agent_testing.h"
#include "tests/trainer/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;
using Event = v1::PublishEvent;
using Message = v1::CoordinatorMessage;

TEST_F(AgentTest, VersionTakesFourMessagesPerMemberWhateverTheCatalog) {
  for (const int tensors : {2, 60}) {
    StartAgent();
    const std::string id = RegisterOk(tensors);
    auto a = NewMember();
    auto b = NewMember();
    EXPECT_EQ(a->JoinAndGetReady("a").tensors_size(), tensors);
    b->JoinAndGetReady("b");
    ASSERT_TRUE(Eventually([&] { return Status().members_size() == 3 && Status().members(2).state() == "ready"; }));
    const size_t sent_before = a->sent();
    const PublishOutcome outcome = Sync(id, 7, {a.get(), b.get()}, ContentOf(tensors));
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
    EXPECT_EQ(outcome.Count(Event::kAccepted), 1);
    EXPECT_EQ(outcome.Count(Event::kReleased), 1);
    EXPECT_EQ(outcome.report().version(), 7u);
    EXPECT_EQ(outcome.report().replicas_size(), 2);
    for (TestMember* member : {a.get(), b.get()}) {
      EXPECT_EQ(member->Count(Message::kBegin), 1u);
      EXPECT_EQ(member->Count(Message::kCommit), 1u);
      EXPECT_EQ(member->Count(Message::kAbort), 0u);
      EXPECT_EQ(member->Count(Message::kWelcome), 1u);
      EXPECT_EQ(member->Count(Message::kCatalog), 1u);
      EXPECT_EQ(member->Count(Message::kHeartbeatAck), 0u);
    }
    EXPECT_EQ(a->sent() - sent_before, 2u) << "staged and applied";
    EXPECT_EQ(Status().state(), v1::SYNC_STATE_IN_SYNC);
    agent_->Stop(absl::ZeroDuration());
  }
}

TEST_F(AgentTest, BigCatalogComesInChunks) {
  StartAgent();
  const int tensors = 4;
  v1::RegisterReply reply;
  grpc::ClientContext context;
  backend_->Lend("/weights", 4096);
  auto stream = trainer_->Register(&context, &reply);
  v1::RegisterRequest request;
  request.mutable_header()->set_pid(getpid());
  request.mutable_header()->add_handles()->mutable_shared_memory()->set_name("/weights");
  request.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_size_bytes(4096);
  for (int i = 0; i < 3000 * tensors; ++i) {
    v1::RegisteredTensor* tensor = request.add_tensors();
    tensor->mutable_tensor()->set_name(absl::StrCat(std::string(400, 'x'), i));
    tensor->mutable_tensor()->set_dtype(v1::DTYPE_F32);
    tensor->mutable_tensor()->add_shape(4);
    if (request.tensors_size() < 3000) continue;
    ASSERT_TRUE(stream->Write(request));
    request.Clear();
  }
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  auto member = NewMember();
  const v1::CatalogChunk catalog = member->JoinAndGetReady("a");
  EXPECT_EQ(catalog.tensors_size(), 3000 * tensors);
  EXPECT_GT(member->Count(Message::kCatalog), 2u);
  EXPECT_EQ(catalog.plan_hash().low(), reply.plan_hash().low());
  EXPECT_EQ(catalog.bucket_bytes(), kMinBucketBytes);
}

TEST_F(AgentTest, MemberThatJoinsBeforeTheTrainerGetsTheCatalogLater) {
  StartAgent();
  auto member = NewMember();
  member->Join("a");
  EXPECT_EQ(member->Await(Message::kWelcome).welcome().heartbeat_ms(), 1000);
  const std::string id = RegisterOk(2);
  const v1::CatalogChunk catalog = member->AwaitCatalog();
  member->Ready(catalog.plan_hash());
  EXPECT_TRUE(Sync(id, 1, {member.get()}, ContentOf(2)).status.ok());
}

// ---- publishing

TEST_F(AgentTest, PublishWithoutEnoughReplicasSaysWhichAreMissing) {
  v1::TrainerConfig config = TestConfig();
  config.mutable_coordinator()->set_min_replicas_wait_ms(0);
  StartAgent(config);
  const PublishOutcome outcome = PublishAndWait(RegisterOk(2), 1);
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("0 of 1"));
}

TEST_F(AgentTest, PublishNeedsARegistrationAndAVersion) {
  StartAgent();
  EXPECT_EQ(PublishAndWait("nonsense", 1).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(PublishAndWait(RegisterOk(2), 0).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(AgentTest, CommittedVersionAgainIsANoOpOlderOrChangedIsNot) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  ASSERT_TRUE(Sync(id, 7, {member.get()}, ContentOf(2)).status.ok());
  const PublishOutcome same = PublishAndWait(id, 7);
  ASSERT_TRUE(same.status.ok()) << same.status.error_message();
  EXPECT_TRUE(same.report().already_committed());
  EXPECT_EQ(member->Count(Message::kBegin), 1u);
  EXPECT_EQ(PublishAndWait(id, 6).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  backend_->ChangeWeights("/weights");
  const PublishOutcome changed = PublishAndWait(id, 7);
  EXPECT_EQ(changed.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(changed.status.error_message(), HasSubstr("other content"));
  EXPECT_EQ(Status().members(1).serving().version(), 7u);
}

TEST_F(AgentTest, SecondCallerJoinsTheRunningVersion) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto first = Publish(id, 7);
  first->AwaitEvent(Event::kReleased);
  auto second = Publish(id, 7);
  second->AwaitEvent(Event::kAccepted);
  second->AwaitEvent(Event::kReleased);
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  member->Applied(begin, ContentOf(2));
  EXPECT_TRUE(first->Join().status.ok());
  EXPECT_TRUE(second->Join().status.ok());
  EXPECT_EQ(backend_->encodes(), 2);
}

TEST_F(AgentTest, AReleasedVersionGoesOnWhenTheCallerHangsUp) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto publish = Publish(id, 7);
  publish->AwaitEvent(Event::kReleased);
  publish->HangUp();
  EXPECT_FALSE(publish->Join().status.ok());
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  member->Applied(begin, ContentOf(2));
  EXPECT_TRUE(Eventually([&] { return Status().last_version().version() == 7; }));
}

TEST_F(AgentTest, AnUnreleasedVersionIsCalledOffWhenItsLastCallerHangsUp) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  backend_->HoldEncodes(true);
  auto first = Publish(id, 7);
  first->AwaitEvent(Event::kAccepted);
  auto second = Publish(id, 7);
  second->AwaitEvent(Event::kAccepted);
  first->HangUp();
  EXPECT_FALSE(first->Join().status.ok());
  EXPECT_EQ(Status().members(0).state(), "syncing") << "one caller is left";
  second->HangUp();
  EXPECT_FALSE(second->Join().status.ok());
  const v1::Abort abort = member->Await(Message::kAbort).abort();
  EXPECT_EQ(abort.version(), 7u);
  EXPECT_THAT(abort.error(), HasSubstr("hung up before the weights were released"));
  backend_->HoldEncodes(false);
  EXPECT_TRUE(Sync(id, 7, {member.get()}, ContentOf(2), 1).status.ok()) << "the same number can be used again";
}

TEST_F(AgentTest, NonFiniteWeightFailsTheVersionAndKeepsTheOldOne) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  ASSERT_TRUE(Sync(id, 1, {member.get()}, ContentOf(2)).status.ok());
  backend_->FailEncode(1, absl::InvalidArgumentError("tensor 'layers.1.weight' has NaN at index 3"));
  const PublishOutcome outcome = PublishAndWait(id, 2);
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("'layers.1.weight' has NaN at index 3"));
  EXPECT_EQ(member->Await(Message::kAbort).abort().version(), 2u);
  EXPECT_EQ(Status().last_version().version(), 1u);
  backend_->FailEncode(1, absl::OkStatus());
  EXPECT_TRUE(Sync(id, 2, {member.get()}, ContentOf(2), 2).status.ok()) << "the same number can be used again";
}

TEST_F(AgentTest, MemberThatFailsToApplyIsReported) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto publish = Publish(id, 7);
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  member->Failed(begin, "the engine did not pause");
  const PublishOutcome outcome = publish->Join();
  ASSERT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.report().replicas(0).outcome(), v1::OUTCOME_LEFT_OUT);
  EXPECT_THAT(outcome.report().replicas(0).reason(), HasSubstr("the engine did not pause"));
}

// ---- status

TEST_F(AgentTest, StatusBeginsWithTheTrainersOwnRow) {
  StartAgent();
  v1::JobStatus status = Status();
  ASSERT_EQ(status.members_size(), 1);
  EXPECT_EQ(status.members(0).role(), "trainer");
  EXPECT_EQ(status.members(0).pid(), getpid());
  EXPECT_EQ(status.members(0).state(), "waiting");
  EXPECT_EQ(status.job(), "test");
  RegisterOk(2);
  auto member = NewMember();
  member->Join("a");
  member->Await(Message::kWelcome);
  status = Status();
  ASSERT_EQ(status.members_size(), 2);
  EXPECT_EQ(status.members(0).state(), "ready");
  EXPECT_EQ(status.members(1).name(), "a");
  EXPECT_EQ(status.catalog().tensors(), 2);
}

TEST_F(AgentTest, WatchSendsTheStatusAgainWhenItChanges) {
  StartAgent();
  grpc::ClientContext context;
  v1::WatchStatusRequest request;
  request.set_min_interval_ms(50);
  auto stream = coordinator_->WatchStatus(&context, request);
  v1::JobStatus status;
  ASSERT_TRUE(stream->Read(&status));
  EXPECT_FALSE(status.has_catalog());
  RegisterOk(2);
  while (!status.has_catalog()) ASSERT_TRUE(stream->Read(&status));
  context.TryCancel();
  while (stream->Read(&status)) {
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// ---- start and stop

TEST_F(AgentTest, SecondTrainerOfAJobIsToldThatThePortIsTaken) {
  StartAgent();
  v1::TrainerConfig config = TestConfig();
  config.mutable_coordinator()->set_listen(agent_->coordinator_address());
  const auto second = TrainerAgent::Start(config, std::make_unique<FakeBackend>());
  EXPECT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("coordinator.listen"));
}

TEST_F(AgentTest, BadRecipeIsRefusedAtStart) {
  v1::TrainerConfig config = TestConfig();
  config.mutable_recipe()->add_include("layers.[0");
  EXPECT_EQ(TrainerAgent::Start(config, std::make_unique<FakeBackend>()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(AgentTest, StopLetsARunningVersionFinishWithinItsGrace) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto publish = Publish(id, 7);
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  std::thread stop([&] { agent_->Stop(kPatience); });
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  member->Applied(begin, ContentOf(2));
  EXPECT_TRUE(publish->Join().status.ok());
  stop.join();
  EXPECT_EQ(member->Await(Message::kRefused).refused().retry(), true);
}

TEST_F(AgentTest, StopWithoutGraceAbortsWhatRuns) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  backend_->HoldEncodes(true);
  auto publish = Publish(id, 7);
  member->Await(Message::kBegin);
  const absl::Time begun = MonotonicNow();
  agent_->Stop(absl::ZeroDuration());
  EXPECT_LT(MonotonicNow() - begun, kPatience);
  const PublishOutcome outcome = publish->Join();
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("shutting down"));
  member->Await(Message::kAbort);
  EXPECT_EQ(member->AwaitEnd().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(AgentTest, StopAnswersTheCallerOfAVersionThatIsBeingApplied) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto publish = Publish(id, 7);
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  agent_->Stop(absl::ZeroDuration());
  const PublishOutcome outcome = publish->Join();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("tells what was committed"));
}

TEST_F(AgentTest, BannerNamesBothAddresses) {
  StartAgent();
  EXPECT_THAT(agent_->Banner(), HasSubstr(agent_->local_address()));
  EXPECT_THAT(agent_->Banner(), HasSubstr(agent_->coordinator_address()));
}

}  // namespace
}  // namespace wsync
