// The whole agent in one process, over real gRPC, between a scripted coordinator and a scripted engine.
#ifndef WSYNC_TESTS_ROLLOUT_ROLLOUT_AGENT_TESTING_H_
#define WSYNC_TESTS_ROLLOUT_ROLLOUT_AGENT_TESTING_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rollout/rollout_agent.h"
#include "server/rpc/convert.h"
#include "tests/rollout/fake_backend.h"
#include "tests/rollout/scripted_peers.h"
#include "tests/rollout/source_testing.h"
#include "tests/rollout/testing.h"

namespace wsync {

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

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_ROLLOUT_AGENT_TESTING_H_
