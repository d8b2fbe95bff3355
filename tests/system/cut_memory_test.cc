// Clients that truncate what they lent to real agents: the agents live on, and nobody else is harmed.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "tests/system/system_testing.h"

namespace wsync::cli {
namespace {

using ::testing::HasSubstr;

// Lent as another program might: without seals.
class Unsealed {
 public:
  explicit Unsealed(int64_t bytes) : fd_(memfd_create("wsync-test", MFD_CLOEXEC)), bytes_(bytes) {
    EXPECT_EQ(posix_fallocate(fd_, 0, bytes), 0);
  }
  ~Unsealed() { close(fd_); }
  Unsealed(const Unsealed&) = delete;
  Unsealed& operator=(const Unsealed&) = delete;
  MemoryHandle handle() const { return SharedMemoryHandle{absl::StrCat("/proc/", getpid(), "/fd/", fd_), bytes_}; }
  void Cut() { EXPECT_EQ(ftruncate(fd_, 0), 0); }

 private:
  const int fd_;
  const int64_t bytes_;
};

// An engine that pauses when it is asked to, in memory that it will cut.
class CuttingEngine {
 public:
  explicit CuttingEngine(const std::string& socket) {
    auto client = EngineClient::Connect(socket, kPatience);
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    const auto outputs = client_->GetOutputs(kPatience);
    EXPECT_TRUE(outputs.ok()) << outputs.status();
    std::vector<Destination> destinations;
    int64_t bytes = 0;
    for (const EngineOutput& output : outputs->outputs) {
      destinations.push_back(WholeTensor(output.tensor, 0, bytes));
      bytes += (BytesOf(output.tensor) + 127) / 128 * 128;
    }
    memory_.emplace(bytes);
    const auto attached = client_->Attach("cutting", {memory_->handle()}, destinations, false, kPatience);
    EXPECT_TRUE(attached.ok()) << attached.status();
    thread_ = std::thread([this] { Follow(); });
  }
  ~CuttingEngine() {
    client_->Cancel();
    thread_.join();
  }
  void Cut() { memory_->Cut(); }
  // How the agent let go of it.
  absl::Status End() {
    MutexLock lock(&mu_);
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (!ended_.has_value() && changed_.WaitUntil(&mu_, deadline)) {
    }
    return ended_.value_or(absl::DeadlineExceededError("the agent did not let go"));
  }

 private:
  void Follow() {
    while (true) {
      const auto event = client_->Next();
      if (event.ok()) {
        if (const auto version = AsksToPause(*event)) client_->Paused(*version).IgnoreError();
        continue;
      }
      MutexLock lock(&mu_);
      ended_ = event.status();
      return changed_.SignalAll();
    }
  }
  std::unique_ptr<EngineClient> client_;
  std::optional<Unsealed> memory_;
  Mutex mu_;
  CondVar changed_;
  std::optional<absl::Status> ended_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

class CutMemory : public System {
 protected:
  // Two replicas, of which the first one's engine will cut its memory; version 1 is served by both.
  void StartWithCuttingEngine(const std::string& sink_mode) {
    Start(2, {}, {{"transfer.sink_mode", sink_mode}});
    engines_[0] = nullptr;
    ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
    cutting_.emplace(cluster_->rollout_socket(0));
    WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 2; }, "both are ready");
    const auto report = Publish(1);
    ASSERT_TRUE(report.ok()) << report.status();
  }
  // A new engine in its place, and a version that all take: both agents are as good as before.
  void ExpectAllGoOn(uint64_t version) {
    cutting_.reset();
    engines_[0] = std::make_unique<EngineThread>("whole", cluster_->rollout_socket(0));
    WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 2; }, "both are ready again");
    const auto report = Publish(version);
    ASSERT_TRUE(report.ok()) << report.status();
    for (const auto& engine : engines_) EXPECT_TRUE(engine->WaitForVersion(version, kPatience));
  }
  static int Applied(const v1::VersionReport& report) {
    return static_cast<int>(std::count_if(report.replicas().begin(), report.replicas().end(), [](const auto& replica) {
      return replica.outcome() == v1::OUTCOME_APPLIED;
    }));
  }
  std::optional<CuttingEngine> cutting_;
};

TEST_F(CutMemory, APublishOfWeightsThatWereCutFailsAndTheAgentServesTheNextRegistration) {
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  ASSERT_TRUE(Publish(1).ok());
  const auto model = SharedModel::Create(SmallModel(), "layout");
  ASSERT_TRUE(model.ok());
  const SourceTensor& last = model->tensors().back();
  Unsealed weights(static_cast<int64_t>(last.offset_bytes) + BytesOf(last.tensor));
  ASSERT_TRUE(trainer_->Register({weights.handle()}, model->tensors(), {}, true).ok());
  ASSERT_TRUE(Publish(2).ok());
  weights.Cut();
  const auto report = Publish(3);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition) << report.status();
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("was cut short"));
  ASSERT_TRUE(model_->Register(*trainer_, {}, true).ok());
  const auto next = Publish(3);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_TRUE(engines_[0]->WaitForVersion(3, kPatience));
}

TEST_F(CutMemory, AnEngineThatCutsItsMemoryIsLetGoAtTheApplyAndTheOthersServeTheVersion) {
  ASSERT_NO_FATAL_FAILURE(StartWithCuttingEngine("staged"));
  cutting_->Cut();
  const auto report = Publish(2);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(Applied(*report), 1);
  EXPECT_TRUE(engines_[1]->WaitForVersion(2, kPatience));
  EXPECT_THAT(std::string(cutting_->End().message()), HasSubstr("was cut short"));
  ExpectAllGoOn(3);
}

TEST_F(CutMemory, InPlaceAsWellAndTheNextVersionDoesWithoutIt) {
  ASSERT_NO_FATAL_FAILURE(StartWithCuttingEngine("in_place"));
  cutting_->Cut();
  EXPECT_EQ(Publish(2).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(cutting_->End().message()), HasSubstr("was cut short"));
  const auto report = Publish(3);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(engines_[1]->WaitForVersion(3, kPatience));
  ExpectAllGoOn(4);
}

TEST_F(CutMemory, VerifyNamesTheEngineAndTheOthersAreVerified) {
  ASSERT_NO_FATAL_FAILURE(StartWithCuttingEngine("staged"));
  cutting_->Cut();
  const Run run = Wsync(absl::StrCat("verify --deep -c ", cluster_->coordinator()));
  EXPECT_THAT(run.output, HasSubstr("was cut short"));
  EXPECT_THAT(run.output, HasSubstr("equal"));
  EXPECT_NE(run.exit_code, 0);
  EXPECT_THAT(std::string(cutting_->End().message()), HasSubstr("was cut short"));
  ExpectAllGoOn(2);
}

TEST_F(CutMemory, WhatOurClientsLendCannotBeCut) {
  const auto segment = SharedSegment::Create(1 << 20, "a test");
  ASSERT_TRUE(segment.ok()) << segment.status();
  const std::string name = std::get<SharedMemoryHandle>((*segment)->handle()).name;
  const int fd = open(name.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_NE(ftruncate(fd, 0), 0);
  EXPECT_NE(ftruncate(fd, 2 << 20), 0);
  close(fd);
}

}  // namespace
}  // namespace wsync::cli
