#include "server/rpc/log_limiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace wsync {
namespace {

using ::testing::IsEmpty;

class LogLimiterTest : public testing::Test {
 protected:
  int Write(const std::string& cause, int lines) {
    int written = 0;
    for (int i = 0; i < lines; ++i) written += limiter_.Admit(cause, now_);
    return written;
  }
  absl::Time now_ = absl::UnixEpoch();
  LogLimiter limiter_{{.lines = 3, .period = absl::Seconds(10), .causes = 2}};
};

TEST_F(LogLimiterTest, OneCauseHasItsLinesAndTheRestIsCountedAndToldOnce) {
  EXPECT_EQ(Write("garbage", 12'348), 3);
  now_ += absl::Seconds(9);
  EXPECT_THAT(limiter_.Over(now_), IsEmpty());
  now_ += absl::Seconds(1);
  const auto over = limiter_.Over(now_);
  ASSERT_EQ(over.size(), 1u);
  EXPECT_EQ(over[0].cause, "garbage");
  EXPECT_EQ(over[0].lines, 12'345);
  EXPECT_THAT(limiter_.Over(now_), IsEmpty());
  EXPECT_EQ(Write("garbage", 5), 3) << "a new period";
}

TEST_F(LogLimiterTest, AFloodOfOneCauseHidesNoOther) {
  EXPECT_EQ(Write("garbage", 1000), 3);
  EXPECT_EQ(Write("version committed", 3), 3);
}

TEST_F(LogLimiterTest, WhatStaysBelowTheLimitIsNeverSpokenOf) {
  EXPECT_EQ(Write("joined", 3), 3);
  now_ += absl::Seconds(11);
  EXPECT_THAT(limiter_.Over(now_), IsEmpty());
}

TEST_F(LogLimiterTest, CausesThatAreMadeUpShareOneLimitAndTakeNoMemory) {
  int written = Write("a", 1) + Write("b", 1);
  for (int i = 0; i < 1000; ++i) written += Write("made up " + std::string(1 + i, 'x'), 1);
  EXPECT_EQ(written, 2 + 3);
  EXPECT_EQ(Write("a", 5), 2) << "those that are known keep what is theirs";
  now_ += absl::Seconds(10);
  const auto over = limiter_.Over(now_);
  ASSERT_EQ(over.size(), 2u);
  EXPECT_EQ(over[0].cause, "");
  EXPECT_EQ(over[0].lines, 997);
}

TEST(CauseOfTest, NumbersAndNamesDoNotMakeANewCause) {
  EXPECT_EQ(CauseOf("version 7 committed: 1/1 replicas"), CauseOf("version 812 committed: 12/12 replicas"));
  EXPECT_EQ(CauseOf("member 'a' left"), CauseOf("member 'something else' left"));
  EXPECT_NE(CauseOf("joined"), CauseOf("left"));
  EXPECT_LE(CauseOf(std::string(100'000, 'x')).size(), 64u);
}

}  // namespace
}  // namespace wsync
