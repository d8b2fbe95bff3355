// The whole agent in one process, over real gRPC, between a scripted coordinator and a scripted engine.
#include "server/rollout/rollout_agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <future>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/core/layers.h"
#include "server/rpc/convert.h"
#include "server/rpc/version.h"
#include "tests/rollout/fake_backend.h"
#include "tests/rollout/scripted_peers.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

class RolloutAgentTest : public ::testing::Test {
 protected:
  RolloutAgentTest() {
    char dir[] = "/tmp/wsync-rollout-XXXXXX";
    dir_ = mkdtemp(dir);
    coordinator_address_ = absl::StrCat("unix://", dir_, "/coordinator.sock");
  }
  ~RolloutAgentTest() override {
    engine_.reset();
    agent_.reset();
    coordinator_.reset();
    unlink(absl::StrCat(dir_, "/coordinator.sock").c_str());
    unlink(absl::StrCat(dir_, "/agent.sock").c_str());
    rmdir(dir_.c_str());
  }

  void StartCoordinator() { coordinator_.emplace(coordinator_address_); }
  void StartAgent(const std::string& sink_mode = "staged") {
    v1::RolloutConfig config;
    config.set_job("job");
    config.set_replica("replica-0");
    config.set_replica_size(1);
    config.set_local_socket(absl::StrCat("unix://", dir_, "/agent.sock"));
    config.set_coordinator(coordinator_address_);
    config.mutable_transfer()->set_sink_mode(sink_mode);
    config.mutable_transfer()->set_ring_slots(2);
    config.mutable_transfer()->set_connect_timeout_ms(5000);
    config.mutable_transfer()->set_reconnect_max_ms(100);
    auto agent = RolloutAgent::Start(config, NewFakeBackend(&script_), grpc::InsecureChannelCredentials());
    ASSERT_TRUE(agent.ok()) << agent.status();
    agent_ = *std::move(agent);
  }
  void Join(int64_t heartbeat_timeout_ms = 10'000) {
    StartCoordinator();
    coordinator_->AwaitJoin();
    coordinator_->Welcome(50, heartbeat_timeout_ms);
    coordinator_->SendCatalog(*plan_);
  }
  v1::AttachRequest Request() {
    int64_t bytes = 0;
    const std::vector<Destination> destinations = WholeDestinations(*plan_, &bytes);
    script_.AddEngineMemory("/engine", bytes);
    v1::AttachRequest request;
    request.mutable_header()->set_pid(4711);
    request.mutable_header()->set_engine("vllm 0.11");
    *request.mutable_header()->add_handles() = ToProto(MemoryHandle(SharedMemoryHandle{"/engine", bytes}));
    for (const Destination& destination : destinations) *request.add_destinations() = ToProto(destination);
    return request;
  }
  void AttachEngine() {
    engine_.emplace(agent_->local_address());
    const grpc::Status attached = engine_->Attach(Request());
    ASSERT_TRUE(attached.ok()) << attached.error_message();
    engine_->OpenUpdates();
  }
  void MakeReady(const std::string& sink_mode = "staged") {
    StartAgent(sink_mode);
    Join();
    AttachEngine();
    coordinator_->AwaitReady(true);
  }
  Hash128 ContentOf(uint64_t version) { return plan_->ContentDigest(SourceDigests(*plan_, version)); }
  void Stage(uint64_t epoch, uint64_t version) {
    script_.SetVersion(version);
    coordinator_->Begin(epoch, version, *plan_);
    EXPECT_EQ(FromProto(coordinator_->AwaitStaged().content_digest()), ContentOf(version));
    EXPECT_EQ(engine_->Next().prepare().version(), version);
  }
  void Serve(uint64_t epoch, uint64_t version) {
    Stage(epoch, version);
    coordinator_->Commit(epoch, version, ContentOf(version));
    EXPECT_EQ(engine_->Next().apply().version(), version);
    engine_->Paused(version);
    EXPECT_EQ(engine_->Next().applied().version(), version);
    EXPECT_EQ(coordinator_->AwaitApplied().version(), version);
    EXPECT_TRUE(EngineHolds(version));
  }
  bool EngineHolds(uint64_t version) { return script_.EngineMemoryIs("/engine", ExpectedMemory(*plan_, version)); }
  void AwaitDelivered(int64_t buckets) {
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (script_.received() != buckets && MonotonicNow() < deadline) std::this_thread::yield();
    ASSERT_EQ(script_.received(), buckets);
  }
  void AwaitHeldApply() {
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (script_.held_applies() == 0 && MonotonicNow() < deadline) std::this_thread::yield();
    ASSERT_GT(script_.held_applies(), 0);
  }

  std::string dir_, coordinator_address_;
  Script script_;
  std::shared_ptr<const Plan> plan_ = PlanOf(SmallCatalog(6));
  std::optional<ScriptedCoordinator> coordinator_;
  std::unique_ptr<RolloutAgent> agent_;
  std::optional<ScriptedEngine> engine_;
};

TEST_F(RolloutAgentTest, VersionCostsFourMessagesAndReachesTheEngine) {
  MakeReady();
  Serve(1, 6);
  const size_t before = coordinator_->rounds_log().size();
  Serve(1, 7);
  std::vector<std::string> log = coordinator_->rounds_log();
  log.erase(log.begin(), log.begin() + static_cast<int64_t>(before));
  EXPECT_THAT(log, ElementsAre("staged", "applied"));  // begin and commit went the other way
}

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
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    while (true) pause();
  }
  v1::AttachRequest request = Request();
  request.mutable_header()->set_pid(child);
  ScriptedEngine killed(agent_->local_address());
  ASSERT_TRUE(killed.Attach(request).ok());
  const auto await = [this](const std::string& why) {
    return coordinator_
        ->Await([&](const v1::MemberMessage& m) { return m.ready().reason().find(why) != std::string::npos; })
        .has_ready();
  };
  ASSERT_TRUE(await("has not opened its update stream"));
  const absl::Time begun = MonotonicNow();
  kill(child, SIGKILL);
  EXPECT_TRUE(await("no engine attached"));
  EXPECT_LT(MonotonicNow() - begun, absl::Seconds(1));
  waitpid(child, nullptr, 0);
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

TEST_F(RolloutAgentTest, RestartedCoordinatorLearnsTheServingVersion) {
  MakeReady();
  Serve(5, 7);
  coordinator_.reset();
  StartCoordinator();
  EXPECT_EQ(coordinator_->AwaitJoin().serving().version(), 7u);
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
