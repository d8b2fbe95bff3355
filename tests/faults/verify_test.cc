// `wsync verify --deep` against real processes: bits that change in live weights, in staging, in what the source keeps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/faults/group.h"

namespace wsync::faults {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Verify : public ::testing::Test {
 protected:
  void Start(GroupOptions options) {
    auto group = Group::Start(std::move(options));
    ASSERT_TRUE(group.ok()) << group.status();
    group_ = *std::move(group);
    Commit();
  }
  void Commit() {
    const auto published = group_->Publish(++version_, Scaled(absl::Seconds(20)));
    ASSERT_TRUE(published.has_value());
    EXPECT_TRUE(published->ok()) << published->message;
    for (int i = 0; i < group_->rollouts(); ++i) {
      EXPECT_TRUE(group_->AwaitVersion(i, version_, Scaled(absl::Seconds(10))).ok());
    }
    EXPECT_TRUE(group_->AwaitReady(Scaled(absl::Seconds(10))).ok());
  }
  int Deep(std::string* output) {
    const std::string wsync = std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/wsync";
    const std::string command =
        absl::StrCat(wsync, " verify --deep -c ", group_->agents().coordinator(), " 2>&1 </dev/null");
    std::FILE* pipe = popen(command.c_str(), "r");
    output->clear();
    std::array<char, 4096> buffer;
    for (size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) output->append(buffer.data(), n);
    const int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  void Flip(int rollout, uint64_t bit) {
    group_->engine(rollout).Tell(absl::StrCat("flip ", bit));
    ASSERT_TRUE(group_->engine(rollout).Await("flipped", Scaled(absl::Seconds(5))).has_value());
  }

  std::unique_ptr<Group> group_;
  uint64_t version_ = 0;
};

TEST_F(Verify, LiveWeightsAreReadAgainAndEveryFlippedBitIsFound) {
  Start({.rollouts = 2});
  std::string output;
  EXPECT_EQ(Deep(&output), 0) << output;
  EXPECT_THAT(output,
              AllOf(HasSubstr("rollout-0"), HasSubstr("rollout-1"), HasSubstr("equal"), Not(HasSubstr("CORRUPT"))));
  std::mt19937_64 random(3);
  // Inside the first tensor, so that no flip falls into the gaps between outputs: 500 x 96 BF16 values, raw.
  for (int i = 0; i < 10; ++i) {
    const uint64_t bit = random() % (500 * 96 * 16);
    ASSERT_NO_FATAL_FAILURE(Flip(1, bit));
    EXPECT_EQ(Deep(&output), 3) << output;
    EXPECT_THAT(output, AllOf(HasSubstr("CORRUPT"), HasSubstr("model.embed_tokens.weight"))) << "bit " << bit;
    ASSERT_NO_FATAL_FAILURE(Flip(1, bit));
  }
  EXPECT_EQ(Deep(&output), 0) << output;
  ASSERT_NO_FATAL_FAILURE(Flip(0, 12345));
  EXPECT_EQ(Deep(&output), 3);
  Commit();  // the next version mends what is broken
  EXPECT_EQ(Deep(&output), 0) << output;
}

TEST_F(Verify, InPlaceSaysThatThereIsNothingToCompareWith) {
  Start({.rollouts = 1, .rollout_flags = {{"transfer.sink_mode", "in_place"}}});
  std::string output;
  EXPECT_EQ(Deep(&output), 3);
  EXPECT_THAT(output, HasSubstr("in_place"));
}

TEST_F(Verify, AMemberThatIsGoneOrStoppedIsListedAndNotWaitedForLong) {
  Start({.rollouts = 2});
  kill(group_->agents().rollout_pid(1), SIGSTOP);
  std::string output;
  EXPECT_EQ(Deep(&output), 3);
  kill(group_->agents().rollout_pid(1), SIGCONT);
  EXPECT_THAT(output, AllOf(HasSubstr("rollout-1"), HasSubstr("no heartbeat")));
  EXPECT_TRUE(group_->AwaitReady(Scaled(absl::Seconds(15))).ok());
}

TEST_F(Verify, ACorruptedCopyOfTheSourceIsRefusedByWhoCatchesUpAndTheNextVersionIsGood) {
  Start({.rollouts = 2});
  // The retained copy is damaged while it is sent to a late joiner: bytes that were digested when they were made.
  ASSERT_TRUE(group_->Arm(group_->agents().trainer_pid(), "trainer.wire", Fault::kCorrupt, 777).ok());
  group_->agents().KillRollout(1);
  ASSERT_TRUE(group_->agents().StartRollout(1).ok());
  usleep(1'500'000);
  EXPECT_TRUE(group_->CheckContent(1, {0}, false).ok());  // nothing rather than that
  EXPECT_EQ(group_->TimesFired("trainer", "trainer.wire"), 1);
  EXPECT_TRUE(group_->CheckContent(0, {version_}, false).ok());
  ASSERT_TRUE(group_->AwaitReady(Scaled(absl::Seconds(15))).ok());
  Commit();
}

}  // namespace
}  // namespace wsync::faults
