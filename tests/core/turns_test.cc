#include "server/core/turns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace wsync {
namespace {

using ::testing::HasSubstr;

class TurnsTest : public ::testing::Test {
 protected:
  // Looks `times` times, each `apart` after the last.
  absl::Status Look(int times, absl::Duration apart = absl::Milliseconds(250)) {
    absl::Status last;
    for (int i = 0; i < times; ++i) last = turns_.Look(now_ += apart);
    return last;
  }

  Turns turns_;
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
};

TEST_F(TurnsTest, OneThatDoesNotEndIsTold) {
  const Turns::Scope turn(&turns_);
  EXPECT_TRUE(Look(24).ok());  // first seen, and 23 times 0.25 s
  const absl::Status stuck = Look(1);
  EXPECT_TRUE(absl::IsInternal(stuck));
  EXPECT_THAT(stuck.message(), HasSubstr("for 6s"));
}

TEST_F(TurnsTest, ManyShortOnesAreWork) {
  for (int i = 0; i < 100; ++i) {
    const Turns::Scope turn(&turns_);
    ASSERT_TRUE(Look(2).ok());
  }
}

TEST_F(TurnsTest, AThreadThatWaitsForWorkIsNotStuck) {
  { const Turns::Scope turn(&turns_); }
  EXPECT_TRUE(Look(1000).ok());
}

TEST_F(TurnsTest, OneThatEndsIsForgotten) {
  for (int i = 0; i < 2; ++i) {
    const Turns::Scope turn(&turns_);
    EXPECT_TRUE(Look(24).ok());
  }
}

// The looking thread stood still as well.
TEST_F(TurnsTest, AStoppedProcessIsNotStuck) {
  const Turns::Scope turn(&turns_);
  EXPECT_TRUE(Look(10, absl::Hours(1)).ok());
}

}  // namespace
}  // namespace wsync
