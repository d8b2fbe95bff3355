// Faults on two GPUs: whoever is killed or stopped in the middle of NCCL's work, memory that somebody else has, bits
// that change in live weights. Survivors are free within the limits that tests/faults/README.md gives, nothing is torn,
// and the next version arrives.
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "server/core/clock.h"
#include "tests/faults/child_process.h"
#include "tests/faults/strangers.h"
#include "tests/faults/wsync_command.h"
#include "tests/gpu/gpu_faults.h"

namespace wsync::gpu {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr int64_t kNextToNothing = int64_t{4} << 20;  // less than any staging copy here, and than a communicator

// ---- the cells

struct Victim {
  Side side;
  Fault fault;
};

class GpuFaultCells : public GpuFaults, public testing::WithParamInterface<Victim> {};

// The first version has to make the communicator; the later ones go on in it, or in the one made after a fault.
TEST_P(GpuFaultCells, AtEveryStepSurvivorIsFreeInTimeAndTheNextVersionArrives) {
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  uint64_t version = 0;
  for (const Step step : {Step::kInit, Step::kFirstBucket, Step::kMiddleBucket, Step::kLastBucket, Step::kApply}) {
    SCOPED_TRACE(absl::StrCat("at ", NameOf(step)));
    ASSERT_NO_FATAL_FAILURE(RunCell(GetParam().side, GetParam().fault, step, &version));
  }
}

INSTANTIATE_TEST_SUITE_P(TwoGpus, GpuFaultCells,
                         testing::Values(Victim{Side::kRollout, Fault::kKill}, Victim{Side::kRollout, Fault::kStop},
                                         Victim{Side::kTrainer, Fault::kKill}, Victim{Side::kTrainer, Fault::kStop}),
                         [](const auto& test) {
                           return absl::StrCat(NameOf(test.param.side), NameOf(test.param.fault));
                         });

// ---- memory

class GpuMemoryFaults : public GpuFaults {
 protected:
  void CommitAndCompare(uint64_t version) {
    ASSERT_NO_FATAL_FAILURE(Train(static_cast<uint32_t>(version)));
    const auto report = Publish(version);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_TRUE(engine_->WaitForVersion(version));
    ASSERT_TRUE(engine_->Memory() == Expected()) << "version " << version;
  }
  // What a publish says that cannot reach the sink.
  std::string Refused(uint64_t version) {
    const absl::Time begin = MonotonicNow();
    const auto report = Publish(version);
    EXPECT_FALSE(report.ok());
    EXPECT_LE(MonotonicNow() - begin, absl::Seconds(10));
    std::string why(report.status().message());
    std::printf("refused after %s: %s\n", absl::FormatDuration(MonotonicNow() - begin).c_str(), why.c_str());
    return why;
  }
};

TEST_F(GpuMemoryFaults, SinkWithoutRoomForItsStagingCopySaysSoAndTakesPartOnceThereIsSome) {
  Start();
  {
    const MemoryHog hog(1, kNextToNothing);
    ASSERT_TRUE(TryRegister().ok());
    const std::string why = Refused(1);
    EXPECT_THAT(why, AllOf(HasSubstr("rollout-0"), HasSubstr("GPU 1"), HasSubstr("staging copy"))) << why;
  }
  ASSERT_NO_FATAL_FAILURE(WaitUntilSettled());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(1));
}

TEST_F(GpuMemoryFaults, AgentThatStartsOnAFullGpuEndsWithTheReasonAndComesBackWhenThereIsRoom) {
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(1));
  const Bytes served = engine_->Memory();
  cluster_->KillRollout(0);
  {
    const MemoryHog hog(1, kNextToNothing);
    const size_t log_before = LogOf("rollout-0").size();
    ASSERT_TRUE(cluster_->LaunchRollout(0).ok());
    const absl::Time deadline = MonotonicNow() + absl::Seconds(15);
    while (!faults::HasEnded(cluster_->rollout_pid(0)) && MonotonicNow() < deadline) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    EXPECT_TRUE(faults::HasEnded(cluster_->rollout_pid(0)));
    EXPECT_THAT(LogOf("rollout-0").substr(log_before), AllOf(HasSubstr("GPU 1"), HasSubstr("memory")));
    EXPECT_THAT(Refused(2), HasSubstr("0 of 1 needed replicas"));
    EXPECT_TRUE(engine_->Memory() == served);
  }
  ASSERT_NO_FATAL_FAILURE(StartAgain(Side::kRollout));
  ASSERT_NO_FATAL_FAILURE(WaitUntilSettled());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(3));
}

// A version allocates nothing, so one in an open session arrives; a new communicator has to wait for memory.
TEST_F(GpuMemoryFaults, FullGpuUnderASinkFailsWhatNeedsACommunicatorAndTheOldVersionIsServedOn) {
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(1));
  {
    const MemoryHog hog(1, kNextToNothing);
    ASSERT_NO_FATAL_FAILURE(CommitAndCompare(2));
    const Bytes served = engine_->Memory();
    ASSERT_NO_FATAL_FAILURE(StartAgain(Side::kTrainer));  // its group needs a communicator of its own
    ASSERT_NO_FATAL_FAILURE(WaitUntilSettled());
    EXPECT_THAT(Refused(3), HasSubstr("rollout-0"));
    EXPECT_EQ(engine_->version(), 2u);
    EXPECT_TRUE(engine_->Memory() == served);
  }
  if (faults::HasEnded(cluster_->rollout_pid(0))) {  // 75: NCCL's abort hung, and its supervisor starts it again
    std::printf("the rollout agent ended\n");
    ASSERT_NO_FATAL_FAILURE(StartAgain(Side::kRollout));
  }
  ASSERT_NO_FATAL_FAILURE(WaitUntilSettled());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(4));
}

// Somebody takes what there is, gives it back and takes it again, on both GPUs, while versions go over.
TEST_F(GpuMemoryFaults, MemoryThatComesAndGoesDuringVersionsChangesNothing) {
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(1));
  std::atomic<bool> done = false;
  std::atomic<int> taken = 0;
  std::vector<std::thread> others;
  for (const int device : {0, 1}) {
    others.emplace_back([&done, &taken, device] {
      while (!done) {
        const MemoryHog hog(device, kNextToNothing);
        ++taken;
        absl::SleepFor(absl::Milliseconds(5));
      }
    });
  }
  uint64_t version = 1;
  for (const absl::Time end = MonotonicNow() + absl::Seconds(5); MonotonicNow() < end && !HasFatalFailure();) {
    CommitAndCompare(++version);
  }
  done = true;
  for (std::thread& other : others) other.join();
  std::printf("%d versions while memory was taken %d times\n", static_cast<int>(version) - 1, taken.load());
  EXPECT_GT(taken, 4);
}

// ---- strangers

// NCCL listens, too: for the ranks of a communicator in the making, and between them.
TEST_F(GpuFaults, StrangersAtEveryPortChangeNothing) {
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  std::atomic<bool> done = false;
  std::set<std::string> found;
  std::thread strangers([&] {
    while (!done) {
      std::vector<int> open;
      for (const Side side : {Side::kTrainer, Side::kRollout}) {
        for (const std::string& address : faults::ListeningAddresses(PidOf(side))) {
          faults::Greet(address, 1, &open);
          found.insert(absl::StrCat(NameOf(side), " ", address));
        }
      }
      absl::SleepFor(absl::Milliseconds(2));
      for (const int fd : open) close(fd);
    }
  });
  uint64_t version = 0;
  std::string failures;
  for (int group = 0; group < 3; ++group) {  // each makes a communicator
    for (int i = 0; i < 10; ++i) {
      Train(static_cast<uint32_t>(++version));
      const auto report = Publish(version);
      if (!report.ok()) {
        absl::StrAppend(&failures, report.status().message(), "\n");
        continue;
      }
      EXPECT_TRUE(engine_->WaitForVersion(version));
      EXPECT_TRUE(engine_->Memory() == Expected());
    }
    done = group == 2;
    if (done) strangers.join();
    kill(PidOf(Side::kRollout), SIGKILL);
    StartAgain(Side::kRollout);
    WaitUntilSettled();
  }
  std::printf("strangers at %d ports: %s\n", static_cast<int>(found.size()), absl::StrJoin(found, ", ").c_str());
  EXPECT_EQ(failures, "");
  EXPECT_GT(found.size(), 2u) << "NCCL's were among them";
  Train(static_cast<uint32_t>(++version));
  ASSERT_TRUE(Publish(version).ok());
  ASSERT_TRUE(engine_->WaitForVersion(version));
  EXPECT_TRUE(engine_->Memory() == Expected());
}

// ---- what is served

TEST_F(GpuMemoryFaults, LiveWeightsAreReadAgainAndAFlippedBitIsNamed) {
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(1));
  const std::string verify = absl::StrCat("verify --deep -c ", cluster_->coordinator());
  std::string output;
  EXPECT_EQ(faults::RunWsync(verify, &output), 0) << output;
  EXPECT_THAT(output, AllOf(HasSubstr("rollout-0"), HasSubstr("equal"), Not(HasSubstr("CORRUPT"))));
  ASSERT_NO_FATAL_FAILURE(engine_->Flip(4711));  // in the first tensor
  EXPECT_EQ(faults::RunWsync(verify, &output), 3) << output;
  EXPECT_THAT(output, AllOf(HasSubstr("CORRUPT"), HasSubstr("model.embed_tokens.weight")));
  ASSERT_NO_FATAL_FAILURE(CommitAndCompare(2));  // the next version mends it
  EXPECT_EQ(faults::RunWsync(verify, &output), 0) << output;
}

}  // namespace
}  // namespace wsync::gpu
