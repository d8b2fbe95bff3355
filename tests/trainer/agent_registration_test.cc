// The trainer agent over real gRPC: catalogs that are registered, replaced, given back, or whose owner dies.
#include <gmock/gmock.h>
#include <sys/wait.h>

#include "server/rpc/convert.h"
#include "tests/trainer/agent_testing.h"
#include "tests/trainer/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;
using Event = v1::PublishEvent;
using Message = v1::CoordinatorMessage;

TEST_F(AgentTest, UnregisterTellsMembersThatThereIsNoPlan) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  v1::UnregisterReply reply;
  EXPECT_TRUE(Unregister(id, &reply).ok());
  EXPECT_FALSE(reply.aborted_version());
  const v1::CatalogChunk none = member->AwaitCatalog(1);
  EXPECT_TRUE(none.last());
  EXPECT_FALSE(none.has_catalog_fingerprint());
  const grpc::Status again = Unregister(id, &reply);
  EXPECT_EQ(again.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_FALSE(Status().has_catalog());
}

TEST_F(AgentTest, UnregisterAbortsAVersionWhoseBytesAreBeingRead) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  backend_->HoldEncodes(true);
  auto publish = Publish(id, 7);
  member->Await(Message::kBegin);
  v1::UnregisterReply reply;
  EXPECT_TRUE(Unregister(id, &reply).ok());
  EXPECT_TRUE(reply.aborted_version());
  EXPECT_EQ(publish->Join().status.error_code(), grpc::StatusCode::ABORTED);
  member->Await(Message::kAbort);
}

TEST_F(AgentTest, UnregisterLetsAReleasedVersionFinish) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto publish = Publish(id, 7);
  publish->AwaitEvent(Event::kReleased);
  v1::UnregisterReply reply;
  EXPECT_TRUE(Unregister(id, &reply).ok());
  EXPECT_FALSE(reply.aborted_version());
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  member->Applied(begin, ContentOf(2));
  EXPECT_TRUE(publish->Join().status.ok());
  EXPECT_FALSE(member->AwaitCatalog(1).has_plan_hash()) << "the plan goes once the version is done";
}

TEST_F(AgentTest, RegisteringTwiceNamesTheOwnerAndTheWayOut) {
  StartAgent();
  const std::string first = RegisterOk(2);
  v1::RegisterReply reply;
  const grpc::Status status = Register(2, &reply, /*replace=*/false, "/second");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("process ", getpid())));
  EXPECT_THAT(status.error_message(), HasSubstr("--replace"));
  const std::string second = RegisterOk(2, /*replace=*/true, "/second");
  EXPECT_NE(first, second);
  const PublishOutcome outcome = PublishAndWait(first, 1);
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("register again"));
}

TEST_F(AgentTest, APlanThatIsOnlyAskedForIsToldAndChangesNothing) {
  StartAgent();
  const std::string id = RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  const RegistrationRequest other = TestRequest(*backend_, 3, "/other");
  v1::RegisterRequest request;
  request.mutable_header()->set_plan_only(true);
  for (const Tensor& tensor : other.tensors) *request.add_tensors()->mutable_tensor() = ToProto(tensor);
  v1::RegisterReply reply;
  grpc::ClientContext context;
  auto stream = trainer_->Register(&context, &reply);
  stream->Write(request);
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();

  EXPECT_EQ(reply.registration_id(), "");
  EXPECT_EQ(reply.tensors(), 3);
  EXPECT_EQ(Status().catalog().tensors(), 2);
  EXPECT_EQ(member->Count(Message::kCatalog), 1u);
  v1::UnregisterReply unregistered;
  EXPECT_TRUE(Unregister(id, &unregistered).ok()) << "the registration holds";
  v1::RegisterReply registered;
  EXPECT_TRUE(Register(3, &registered, /*replace=*/false, "/other").ok());
  EXPECT_EQ(reply.plan_hash().low(), registered.plan_hash().low());
}

TEST_F(AgentTest, APlanThatCannotBeMadeNamesTheTensor) {
  StartAgent();
  v1::RegisterRequest request;
  request.mutable_header()->set_plan_only(true);
  const Tensor twice = TestRequest(*backend_, 1, "/weights").tensors[0];
  for (int i = 0; i < 2; ++i) *request.add_tensors()->mutable_tensor() = ToProto(twice);
  v1::RegisterReply reply;
  grpc::ClientContext context;
  auto stream = trainer_->Register(&context, &reply);
  stream->Write(request);
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr(twice.name));
}

TEST_F(AgentTest, TheTrainingProcessIsToldOfTheJobOnItsOwnSocket) {
  StartAgent();
  RegisterOk(2);
  auto member = NewMember();
  member->JoinAndGetReady("a");
  v1::JobStatus status;
  ASSERT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    return trainer_->GetStatus(&context, v1::GetStatusRequest(), &status).ok() && status.members_size() == 2 &&
           status.members(1).state() == "ready";
  }));
  EXPECT_EQ(status.members(1).replica(), Status().members(1).replica());
  EXPECT_EQ(status.members(1).replica_size(), 1);
}

TEST_F(AgentTest, RegistrationOfAnotherPlanReachesTheMembers) {
  StartAgent();
  RegisterOk(2);
  auto member = NewMember();
  const v1::CatalogChunk first = member->JoinAndGetReady("a");
  const std::string id = RegisterOk(3, /*replace=*/true, "/second");
  v1::CatalogChunk last;
  ASSERT_TRUE(Eventually([&] {
    last = member->AwaitCatalog(member->Count(Message::kCatalog) - 1);
    return last.tensors_size() == 3;
  }));
  EXPECT_NE(last.plan_hash().low(), first.plan_hash().low());
  member->Ready(last.plan_hash());
  EXPECT_TRUE(Sync(id, 1, {member.get()}, ContentOf(3, "/second")).status.ok());
}

TEST_F(AgentTest, RestartedTrainerWithTheSamePlanDisturbsNobody) {
  StartAgent();
  const std::string first = RegisterOk(2);
  auto a = NewMember();
  a->JoinAndGetReady("a");
  ASSERT_TRUE(Sync(first, 7, {a.get()}, ContentOf(2)).status.ok());
  const std::string id = RegisterOk(2, /*replace=*/true, "/second");
  backend_->ChangeWeights("/second");
  EXPECT_TRUE(Sync(id, 8, {a.get()}, ContentOf(2, "/second"), 1).status.ok());
  EXPECT_EQ(a->Count(Message::kCatalog), 1u);
}

TEST_F(AgentTest, RegistrationTellsWhatTheGroupHas) {
  StartAgent();
  v1::RegisterReply reply;
  ASSERT_TRUE(Register(2, &reply).ok());
  EXPECT_EQ(reply.committed().version(), 0u);
  auto a = NewMember();
  a->JoinAndGetReady("a");
  const v1::Hash content = ContentOf(2);
  ASSERT_TRUE(Sync(reply.registration_id(), 7, {a.get()}, content).status.ok());
  ASSERT_TRUE(Register(2, &reply, /*replace=*/true, "/second").ok());
  EXPECT_EQ(reply.committed().version(), 7u);
  EXPECT_EQ(reply.committed().content_digest().low(), content.low());
}

TEST_F(AgentTest, RegistrationErrorsNameTheTensor) {
  StartAgent();
  grpc::ClientContext context;
  v1::RegisterReply reply;
  auto stream = trainer_->Register(&context, &reply);
  backend_->Lend("/weights", 4096);
  v1::RegisterRequest request;
  request.mutable_header()->set_pid(getpid());
  request.mutable_header()->add_handles()->mutable_shared_memory()->set_name("/weights");
  request.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_size_bytes(4096);
  v1::RegisteredTensor* tensor = request.add_tensors();
  tensor->mutable_tensor()->set_name("too.big");
  tensor->mutable_tensor()->set_dtype(v1::DTYPE_BF16);
  tensor->mutable_tensor()->add_shape(5000);
  stream->Write(request);
  stream->WritesDone();
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("'too.big'"));
}

TEST_F(AgentTest, RegistrationWithoutHeaderIsRefused) {
  StartAgent();
  for (const bool empty : {true, false}) {
    grpc::ClientContext context;
    v1::RegisterReply reply;
    auto stream = trainer_->Register(&context, &reply);
    v1::RegisterRequest request;
    if (!empty) {
      request.add_tensors()->mutable_tensor()->set_name("t");
      stream->Write(request);
    }
    stream->WritesDone();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(AgentTest, ACatalogOfWhichPartCameIsNeverRegistered) {
  StartAgent();
  backend_->Lend("/weights", 4096);
  for (const uint64_t announced : {uint64_t{2}, uint64_t{0}, uint64_t{1}}) {
    grpc::ClientContext context;
    v1::RegisterReply reply;
    auto stream = trainer_->Register(&context, &reply);
    v1::RegisterRequest request;
    request.mutable_header()->set_pid(getpid());
    request.mutable_header()->set_tensors(announced);
    request.mutable_header()->add_handles()->mutable_shared_memory()->set_name("/weights");
    request.mutable_header()->mutable_handles(0)->mutable_shared_memory()->set_size_bytes(4096);
    request.add_tensors()->mutable_tensor()->set_name("a");
    request.mutable_tensors(0)->mutable_tensor()->set_dtype(v1::DTYPE_BF16);
    stream->Write(request);
    stream->WritesDone();
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.ok(), announced == 1) << status.error_message();
    if (announced != 1) {
      EXPECT_THAT(status.error_message(), HasSubstr(absl::StrCat("1 tensors where its header says ", announced)));
    }
  }
}

TEST_F(AgentTest, AbandonedRegistrationRegistersNothing) {
  StartAgent();
  {
    grpc::ClientContext context;
    v1::RegisterReply reply;
    auto stream = trainer_->Register(&context, &reply);
    v1::RegisterRequest request;
    request.mutable_header()->set_pid(getpid());
    stream->Write(request);
    context.TryCancel();
    EXPECT_FALSE(stream->Finish().ok());
  }
  EXPECT_NE(RegisterOk(2), "");
}

class DeadOwner : public AgentTest {
 protected:
  // A process that lives until Kill.
  void Fork() {
    child_ = fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      while (true) pause();
    }
  }
  void Kill() {
    if (child_ <= 0) return;
    kill(child_, SIGKILL);
    EXPECT_EQ(waitpid(child_, nullptr, 0), child_);
    child_ = 0;
  }
  void TearDown() override {
    Kill();
    AgentTest::TearDown();
  }
  pid_t child_ = 0;
};

TEST_F(DeadOwner, AbortsTheVersionThatReadsItsMemory) {
  Fork();
  StartAgent();
  v1::RegisterReply reply;
  ASSERT_TRUE(Register(2, &reply, false, "/weights", child_).ok());
  auto member = NewMember();
  member->JoinAndGetReady("a");
  backend_->HoldEncodes(true);
  auto publish = Publish(reply.registration_id(), 7);
  member->Await(Message::kBegin);
  Kill();
  const PublishOutcome outcome = publish->Join();
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("has ended before the weights were released"));
  EXPECT_EQ(member->Await(Message::kAbort).abort().version(), 7u);
  EXPECT_EQ(Status().members(1).state(), "ready") << "the catalog is as good as before";
  backend_->HoldEncodes(false);
  EXPECT_TRUE(Sync(RegisterOk(2), 8, {member.get()}, ContentOf(2), 1).status.ok());
}

TEST_F(DeadOwner, LetsAReleasedVersionAndLateJoinersGoOn) {
  Fork();
  StartAgent();
  v1::RegisterReply reply;
  ASSERT_TRUE(Register(2, &reply, false, "/weights", child_).ok());
  auto member = NewMember();
  member->JoinAndGetReady("a");
  auto publish = Publish(reply.registration_id(), 7);
  publish->AwaitEvent(Event::kReleased);
  Kill();
  ASSERT_TRUE(Eventually([&] {
    return Status().members(0).engine().empty() &&
           Status().members(0).last_error().find("has ended") != std::string::npos;
  }));
  const v1::Begin begin = member->Await(Message::kBegin).begin();
  member->Staged(begin, ContentOf(2));
  member->Await(Message::kCommit);
  member->Applied(begin, ContentOf(2));
  EXPECT_TRUE(publish->Join().status.ok());
  auto late = NewMember();
  late->JoinAndGetReady("late");
  EXPECT_EQ(late->Await(Message::kBegin).begin().version(), 7u);
}

TEST_F(DeadOwner, CannotPublishAndIsReplacedWithoutAsking) {
  Fork();
  StartAgent();
  v1::RegisterReply reply;
  ASSERT_TRUE(Register(2, &reply, false, "/weights", child_).ok());
  Kill();
  const PublishOutcome outcome = PublishAndWait(reply.registration_id(), 1);
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(outcome.status.error_message(), HasSubstr("has ended; register again"));
  EXPECT_NE(RegisterOk(2), "");
}

}  // namespace
}  // namespace wsync
