// The publisher with a ring: the trainer waits for the wire.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/trainer/publisher_testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

TEST_F(PublisherTest, RingEncodesIntoASlotOnlyAfterItsBroadcast) {
  Open(SourceMode::kRing);
  backend_.HoldSends(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.operations(Kind::kSend).size() == kBuckets; }));
  const auto encodes = backend_.operations(Kind::kEncode);
  const auto sends = backend_.operations(Kind::kSend);
  ASSERT_EQ(encodes.size(), size_t{kBuckets});
  for (int k = 0; k < kBuckets; ++k) {
    EXPECT_EQ(encodes[k].bucket, k);
    EXPECT_EQ(encodes[k].after, k < 2 ? nullptr : CompletionPtr(sends[k - 2].done));
    EXPECT_EQ(sends[k].after, encodes[k].done);
    EXPECT_EQ(encodes[k].data, encodes[k % 2].data);
    EXPECT_EQ(encodes[k].done->Poll().has_value(), k < 2);
  }
  EXPECT_EQ(events_.size(), 0u) << "the trainer waits for the wire";
  backend_.HoldSends(false);
  EXPECT_EQ(events_.Await<event::SourceReleased>().version, 7u);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 1u);
  EXPECT_EQ(backend_.violations(), 0);
}

TEST_F(PublisherTest, RingRestartsBeforeReleaseByEncodingAgain) {
  Open(SourceMode::kRing);
  backend_.HoldSends(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.operations(Kind::kSend).size() == kBuckets; }));
  Cancel(1, false);
  Start(2, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() == 2 * kBuckets; }));
  backend_.HoldSends(false);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 2u);
  EXPECT_EQ(events_.Count<event::SourceReleased>(), 1u);
  EXPECT_EQ(events_.Count<event::SourceFailed>(), 0u);
}

TEST_F(PublisherTest, RingLosesAVersionOnceItIsReleased) {
  Open(SourceMode::kRing);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  Start(2, 7, false);
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_TRUE(failed.version_lost);
  EXPECT_THAT(std::string(failed.status.message()), HasSubstr("source_mode"));
  EXPECT_EQ(backend_.encodes(), kBuckets);
}

TEST_F(PublisherTest, RingBrokenSessionIsNotALostVersion) {
  PublisherOptions options;
  options.connect_timeout = absl::Milliseconds(20);
  Open(SourceMode::kRing, options);
  backend_.HoldConnects(true);
  Start(1, 7, true);
  EXPECT_FALSE(events_.Await<event::SourceFailed>().version_lost);
  backend_.HoldConnects(false);
  Start(2, 7, true);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 2u);
}

TEST_F(PublisherTest, RingNonFiniteWeightIsALostVersion) {
  Open(SourceMode::kRing);
  backend_.FailEncode(3, absl::InvalidArgumentError("NaN"));
  Start(1, 7, true);
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_TRUE(failed.version_lost);
  EXPECT_TRUE(absl::IsInvalidArgument(failed.status));
}

TEST_F(PublisherTest, RingCancelReachesASessionThatConnects) {
  Open(SourceMode::kRing);
  backend_.HoldConnects(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 1; }));
  Cancel(1, true);
  EXPECT_TRUE(Eventually([&] { return backend_.open_sessions() == 0; }));
}

TEST_F(PublisherTest, RingAloneEncodesEverythingForItsDigest) {
  Open(SourceMode::kRing);
  Start(1, 7, true, /*world=*/1);
  EXPECT_EQ(events_.Await<event::SourceReleased>().digest, Flush());
  EXPECT_TRUE(backend_.operations(Kind::kSend).empty());
}

}  // namespace
}  // namespace wsync
