// The agent with its engine: what it tells it, and how engines come and go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rollout/rollout_agent.h"
#include "server/rpc/convert.h"
#include "tests/rollout/rollout_agent_testing.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// What an engine's process is to the agent: a pid that lives, or does not.
class IdleProcess {
 public:
  IdleProcess() : pid_(fork()) {
    if (pid_ < 0) std::abort();  // kill(-1) is for everybody
    while (pid_ == 0) pause();
  }
  ~IdleProcess() {
    Kill();
    waitpid(pid_, nullptr, 0);
  }
  IdleProcess(const IdleProcess&) = delete;
  IdleProcess& operator=(const IdleProcess&) = delete;
  pid_t pid() const { return pid_; }
  void Kill() const { kill(pid_, SIGKILL); }

 private:
  const pid_t pid_;
};

TEST_F(RolloutAgentTest, OutputsAreThePlansInOrder) {
  StartAgent();
  Join();
  ScriptedEngine engine(agent_->local_address());
  std::vector<v1::OutputsReply> replies;
  ASSERT_TRUE(engine.GetOutputs(kPatience, &replies).ok());
  ASSERT_EQ(replies.size(), 1u);
  EXPECT_EQ(FromProto(replies[0].plan_hash()), plan_->hash());
  EXPECT_EQ(replies[0].payload_bytes(), static_cast<uint64_t>(plan_->payload_bytes()));
  EXPECT_TRUE(replies[0].rules().fp8());
  ASSERT_EQ(replies[0].outputs_size(), static_cast<int>(plan_->outputs().size()));
  for (size_t i = 0; i < plan_->outputs().size(); ++i) {
    EXPECT_EQ(replies[0].outputs(static_cast<int>(i)).tensor().name(), plan_->outputs()[i].name);
  }
  EXPECT_FALSE(replies[0].outputs(0).quantized());
  EXPECT_TRUE(replies[0].outputs(1).quantized());
  EXPECT_TRUE(replies[0].outputs(2).is_scale());
}

TEST_F(RolloutAgentTest, WithoutACatalogTheDeadlineSaysWhatIsMissing) {
  StartAgent();
  ScriptedEngine engine(agent_->local_address());
  std::vector<v1::OutputsReply> replies;
  const grpc::Status outputs = engine.GetOutputs(absl::Milliseconds(300), &replies);
  EXPECT_EQ(outputs.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(outputs.error_message(),
              HasSubstr(absl::StrCat("no catalog yet: no link to the coordinator at ", coordinator_address_)));
  StartCoordinator();
  coordinator_->AwaitJoin();
  coordinator_->Welcome();
  coordinator_->SendNoCatalog();
  const grpc::Status attached = engine.Attach(Request(), absl::Milliseconds(300));
  EXPECT_EQ(attached.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(attached.error_message(), HasSubstr(absl::StrCat("no catalog yet: is a trainer registered with the "
                                                               "coordinator at ",
                                                               coordinator_address_)));
}

// A second agent of a name dials as well as the first one: that it is refused must not look like a dead coordinator.
TEST_F(RolloutAgentTest, ARefusedAgentSaysWhoIsInItsWayToo) {
  StartAgent();
  StartCoordinator();
  coordinator_->AwaitJoin();
  v1::CoordinatorMessage message;
  message.mutable_refused()->set_error("replica-0/0 cannot join: replica-0/0 on node-3, pid 42, is a live member");
  message.mutable_refused()->set_retry(true);
  coordinator_->Send(message);
  ScriptedEngine engine(agent_->local_address());
  coordinator_->AwaitJoin();  // it tries again
  std::vector<v1::OutputsReply> replies;
  EXPECT_THAT(engine.GetOutputs(absl::Milliseconds(300), &replies).error_message(),
              AllOf(HasSubstr("it refuses this agent"), HasSubstr("on node-3, pid 42, is a live member"),
                    Not(HasSubstr("is a trainer registered"))));
}

TEST_F(RolloutAgentTest, AttachBeforeThePlanWaitsForIt) {
  StartAgent();
  ScriptedEngine engine(agent_->local_address());
  auto attached = std::async(std::launch::async, [&] { return engine.Attach(Request()); });
  Join();
  const grpc::Status status = attached.get();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(FromProto(engine.attached().plan_hash()), plan_->hash());
  EXPECT_EQ(engine.attached().bytes_per_version(), static_cast<uint64_t>(plan_->payload_bytes()));
}

TEST_F(RolloutAgentTest, AttachErrorsListTheNames) {
  StartAgent();
  Join();
  ScriptedEngine engine(agent_->local_address());
  v1::AttachRequest request = Request();
  request.mutable_destinations(1)->mutable_output()->set_dtype(v1::DTYPE_BF16);
  request.mutable_destinations(3)->mutable_output()->set_name("model.layers.9.nothing");
  const grpc::Status status = engine.Attach(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr(request.destinations(1).output().name()));
  EXPECT_THAT(status.error_message(), HasSubstr("model.layers.9.nothing"));
}

TEST_F(RolloutAgentTest, AttachWithoutHeaderIsRefused) {
  StartAgent();
  Join();
  ScriptedEngine engine(agent_->local_address());
  v1::AttachRequest request = Request();
  request.mutable_header()->clear_engine();
  EXPECT_EQ(engine.Attach(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(RolloutAgentTest, SecondEngineIsToldWhoIsAttached) {
  MakeReady();
  ScriptedEngine second(agent_->local_address());
  const grpc::Status status = second.Attach(Request());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(status.error_message(), HasSubstr("vllm 0.11 (pid 4711)"));
}

// It had to wait until the ten seconds of the first one were over.
TEST_F(RolloutAgentTest, EngineKilledBeforeItOpenedItsUpdatesMakesWayForItsSuccessor) {
  StartAgent();
  Join();
  ScriptedEngine killed(agent_->local_address());
  ASSERT_TRUE(killed.Attach(Request()).ok());
  engine_.emplace(agent_->local_address());
  EXPECT_EQ(engine_->Attach(Request()).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  const absl::Time deadline = MonotonicNow() + absl::Seconds(5);
  grpc::Status attached;
  do {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    attached = engine_->Attach(Request());
  } while (!attached.ok() && MonotonicNow() < deadline);
  ASSERT_TRUE(attached.ok()) << attached.error_message();
  engine_->OpenUpdates();
  coordinator_->AwaitReady(true);
  Serve(1, 1);
}

// Nobody has to come for that: it is noticed by its pid.
TEST_F(RolloutAgentTest, EngineThatDiesBeforeItOpenedItsUpdatesIsLetGoWithinASecond) {
  StartAgent();
  Join();
  IdleProcess process;
  v1::AttachRequest request = Request();
  request.mutable_header()->set_pid(process.pid());
  ScriptedEngine killed(agent_->local_address());
  ASSERT_TRUE(killed.Attach(request).ok());
  const auto await = [this](const std::string& why) {
    return coordinator_
        ->Await([&](const v1::MemberMessage& m) { return m.ready().reason().find(why) != std::string::npos; })
        .has_ready();
  };
  ASSERT_TRUE(await("has not opened its update stream"));
  const absl::Time begun = MonotonicNow();
  process.Kill();
  EXPECT_TRUE(await("no engine attached"));
  EXPECT_LT(MonotonicNow() - begun, absl::Seconds(1));
  AttachEngine();
  coordinator_->AwaitReady(true);
  Serve(1, 1);
}

// A child that it left behind keeps its connection open, say.
TEST_F(RolloutAgentTest, EngineThatDiesIsLetGoThoughItsStreamLivesOn) {
  StartAgent();
  Join();
  IdleProcess process;
  v1::AttachRequest request = Request();
  request.mutable_header()->set_pid(process.pid());
  ScriptedEngine killed(agent_->local_address());
  ASSERT_TRUE(killed.Attach(request).ok());
  killed.OpenUpdates();
  coordinator_->AwaitReady(true);
  process.Kill();
  EXPECT_THAT(coordinator_->AwaitReady(false).reason(), HasSubstr("its process has ended"));
  EXPECT_EQ(killed.End().error_code(), grpc::StatusCode::ABORTED);
  AttachEngine();
  coordinator_->AwaitReady(true);
  Serve(1, 1);
}

TEST_F(RolloutAgentTest, UpdatesOfAnUnknownAttachmentAreNotFound) {
  StartAgent();
  ScriptedEngine engine(agent_->local_address());
  engine.OpenUpdates("nobody");
  EXPECT_EQ(engine.End().error_code(), grpc::StatusCode::NOT_FOUND);
}

// As on a stream that is open: the client must not take it for an attachment that never was.
TEST_F(RolloutAgentTest, AnEngineThatIsLetGoBeforeItOpensItsUpdatesHearsWhy) {
  MakeReady();
  engine_.reset();
  coordinator_->AwaitReady(false);
  ScriptedEngine late(agent_->local_address());
  ASSERT_TRUE(late.Attach(Request()).ok());
  coordinator_->SendCatalog(*PlanOf(SmallCatalog(7)));
  coordinator_->Await(
      [](const v1::MemberMessage& m) { return m.ready().reason().find("catalog changed") != std::string::npos; });
  late.OpenUpdates();
  const grpc::Status end = late.End();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(end.error_message(), HasSubstr("catalog changed: attach again"));
}

TEST_F(RolloutAgentTest, LosingTheUpdateStreamDetaches) {
  MakeReady();
  engine_.reset();
  EXPECT_THAT(coordinator_->AwaitReady(false).reason(), AllOf(HasSubstr("no engine attached"), HasSubstr("is gone")));
  AttachEngine();
  coordinator_->AwaitReady(true);
}

TEST_F(RolloutAgentTest, DetachEndsTheStreamInOrder) {
  MakeReady();
  EXPECT_TRUE(engine_->Detach().ok());
  EXPECT_THAT(coordinator_->AwaitReady(false).reason(), EndsWith("is gone: it detached"));
  EXPECT_TRUE(engine_->End().ok());
  EXPECT_EQ(engine_->Detach().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(RolloutAgentTest, RestartedEngineTakesTheStagedCopyWithoutTheCoordinator) {
  MakeReady();
  Serve(1, 7);
  engine_.reset();
  coordinator_->AwaitReady(false);
  script_.ClearEngineMemory("/engine");
  AttachEngine();
  EXPECT_EQ(engine_->Next().apply().version(), 7u);
  engine_->Paused(7);
  EXPECT_EQ(engine_->Next().applied().version(), 7u);
  EXPECT_TRUE(EngineHolds(7));
  const v1::Ready ready = coordinator_->AwaitReady(true);
  EXPECT_EQ(ready.serving().version(), 7u);
  EXPECT_EQ(FromProto(ready.serving().content_digest()), ContentOf(7));
}

TEST_F(RolloutAgentTest, ChangedCatalogThatDoesNotFitEndsTheAttachment) {
  MakeReady();
  coordinator_->SendCatalog(*PlanOf(SmallCatalog(7)));
  const grpc::Status end = engine_->End();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(end.error_message(), HasSubstr("catalog changed: attach again"));
  const auto says = [this](const std::string& what) {
    return coordinator_
        ->Await([&](const v1::MemberMessage& m) {
          return m.has_ready() && m.ready().reason().find(what) != std::string::npos;
        })
        .ready()
        .reason();
  };
  // Whoever looks at the status later hears why there is no engine, and of what comes after it.
  EXPECT_THAT(says("engine vllm 0.11 (pid 4711) is gone: the catalog changed"), HasSubstr("no engine attached"));
  EXPECT_EQ(engine_->Attach(Request()).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(says("engine vllm 0.11 (pid 4711) was refused: "), HasSubstr("no engine attached"));
}

}  // namespace
}  // namespace wsync
