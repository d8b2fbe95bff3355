// `wsync verify --deep` against real processes: bits that change in live weights, in staging, in what the source keeps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/faults/group_test.h"
#include "tests/faults/wsync_command.h"

namespace wsync::faults {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Verify : public GroupTest {
 protected:
  int Deep(std::string* output) {
    return RunWsync(absl::StrCat("verify --deep -c ", group_->agents().coordinator()), output);
  }
  void Flip(int rollout, uint64_t bit) {
    group_->engine(rollout).Tell(absl::StrCat("flip ", bit));
    ASSERT_TRUE(group_->engine(rollout).Await("flipped", Scaled(absl::Seconds(5))).has_value());
  }
};

TEST_F(Verify, LiveWeightsAreReadAgainAndEveryFlippedBitIsFound) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
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

// Without a staging copy, by the digest tables that came with the bytes.
TEST_F(Verify, InPlaceIsReadAgainAsWell) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2, .rollout_flags = {{"transfer.sink_mode", "in_place"}}}));
  std::string output;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Deep(&output), 0) << output;
    EXPECT_THAT(output, AllOf(HasSubstr("equal"), Not(HasSubstr("CORRUPT"))));
    ASSERT_NO_FATAL_FAILURE(Flip(1, 4711 + 1000 * i));
    EXPECT_EQ(Deep(&output), 3) << output;
    EXPECT_THAT(output, AllOf(HasSubstr("CORRUPT"), HasSubstr("model.embed_tokens.weight")));
    Commit();  // the next version mends it, and brings tables of its own
  }
  EXPECT_EQ(Deep(&output), 0) << output;
}

// Bytes are checked as they land, and once: what becomes of the staging copy between that and the apply is served, and
// the coordinator told that all is well. It is found by reading the live weights again, and by nothing before.
TEST_F(Verify, ABitThatFlipsInTheStagingCopyAfterItsCheckIsServedAndFound) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  std::string output;
  for (int i = 0; i < 3; ++i) {
    const int bit = 1000 + 40'000 * i;  // of the first tensor's raw data, which the image begins with
    ASSERT_TRUE(ArmFailpoint(group_->agents().rollout_pid(1), "rollout.image", Fault::kCorrupt, bit).ok());
    const auto published = group_->Publish(++version_, Scaled(absl::Seconds(10)));
    ASSERT_TRUE(published.has_value());
    EXPECT_TRUE(published->ByAll()) << published->message;
    EXPECT_EQ(group_->TimesFired("rollout-1", "rollout.image"), i + 1);
    EXPECT_TRUE(group_->CheckContent(0, {version_}, false).ok());
    EXPECT_EQ(group_->CheckContent(1, {version_}, false).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(Deep(&output), 3) << output;
    EXPECT_THAT(output, AllOf(HasSubstr("CORRUPT"), HasSubstr("model.embed_tokens.weight")));
    Commit();  // the next version mends it
    EXPECT_EQ(Deep(&output), 0) << output;
  }
}

TEST_F(Verify, AMemberThatIsGoneOrStoppedIsListedAndNotWaitedForLong) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  ASSERT_NO_FATAL_FAILURE(Stop(group_->agents().rollout_pid(1)));
  std::string output;
  EXPECT_EQ(Deep(&output), 3);
  kill(group_->agents().rollout_pid(1), SIGCONT);
  EXPECT_THAT(output, AllOf(HasSubstr("rollout-1"), HasSubstr("no heartbeat")));
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
}

TEST_F(Verify, ACorruptedCopyOfTheSourceIsRefusedByWhoCatchesUpAndTheNextVersionIsGood) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  // The retained copy is damaged while it is sent to a late joiner: bytes that were digested when they were made.
  ASSERT_TRUE(ArmFailpoint(group_->agents().trainer_pid(), "trainer.wire", Fault::kCorrupt, 777).ok());
  group_->agents().KillRollout(1);
  ASSERT_TRUE(group_->agents().StartRollout(1).ok());
  usleep(1'500'000);
  EXPECT_TRUE(group_->CheckContent(1, {0}, false).ok());  // nothing rather than that
  EXPECT_EQ(group_->TimesFired("trainer", "trainer.wire"), 1);
  EXPECT_TRUE(group_->CheckContent(0, {version_}, false).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

}  // namespace
}  // namespace wsync::faults
