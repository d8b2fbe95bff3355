// The publisher with a whole image, and what it does whatever the source mode.
#include "server/trainer/publisher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/trainer/publisher_testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

TEST_F(PublisherTest, ReleasesTheTrainerBeforeTheWireIsDone) {
  Open(SourceMode::kFull);
  backend_.HoldSends(true);
  Start(1, 7, true);
  const auto released = events_.Await<event::SourceReleased>();
  EXPECT_EQ(released.version, 7u);
  EXPECT_EQ(released.epoch, 1u);
  EXPECT_FALSE(released.digest.IsZero());
  EXPECT_EQ(events_.Count<event::SourceSent>(), 0u);
  backend_.HoldSends(false);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 1u);
}

TEST_F(PublisherTest, ReleasesTheTrainerWhilePeersConnect) {
  Open(SourceMode::kFull);
  backend_.HoldConnects(true);
  Start(1, 7, true);
  events_.Await<event::SourceReleased>();
  EXPECT_TRUE(backend_.operations(Kind::kSend).empty());
  backend_.HoldConnects(false);
  events_.Await<event::SourceSent>();
  EXPECT_EQ(backend_.operations(Kind::kSend).size(), size_t{kBuckets});
}

TEST_F(PublisherTest, SendsEachBucketBehindItsEncoding) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.operations(Kind::kSend).size() == kBuckets; }));
  const auto encodes = backend_.operations(Kind::kEncode);
  const auto sends = backend_.operations(Kind::kSend);
  for (int k = 0; k < kBuckets; ++k) {
    EXPECT_EQ(sends[k].after, encodes[k].done);
    EXPECT_EQ(sends[k].data, encodes[k].data);
  }
  backend_.HoldEncodes(false);
  events_.Await<event::SourceSent>();
}

TEST_F(PublisherTest, SentNeverComesBeforeReleased) {
  Open(SourceMode::kFull);
  for (uint64_t v = 1; v <= 50; ++v) {
    Start(v, v, true);
    events_.Await<event::SourceSent>(v - 1);
    ASSERT_EQ(events_.Count<event::SourceReleased>(), v);
  }
  EXPECT_EQ(backend_.violations(), 0);
}

TEST_F(PublisherTest, RestartSendsTheImageWithoutEncodingAgain) {
  Open(SourceMode::kFull);
  backend_.HoldSends(true);
  Start(1, 7, true);
  events_.Await<event::SourceReleased>();
  Cancel(1, false);
  backend_.HoldSends(false);
  Start(2, 7, false);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 2u);
  EXPECT_EQ(backend_.encodes(), kBuckets);
  EXPECT_EQ(events_.Count<event::SourceReleased>(), 1u);
  EXPECT_EQ(events_.Count<event::SourceFailed>(), 0u) << "who cancels knows";
}

TEST_F(PublisherTest, RestartWhileEncodingJoinsTheEncode) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() == kBuckets; }));
  Cancel(1, false);
  Start(2, 7, true);
  backend_.HoldEncodes(false);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 2u);
  EXPECT_EQ(events_.Await<event::SourceReleased>().version, 7u);
  EXPECT_EQ(backend_.encodes(), kBuckets);
}

TEST_F(PublisherTest, DroppedVersionIsEncodedAfresh) {
  Open(SourceMode::kFull);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  const Hash128 before = events_.Await<event::SourceReleased>().digest;
  Cancel(1, true);
  weights_[0] = std::byte{0x5A};
  Start(2, 7, true);
  EXPECT_EQ(events_.Await<event::SourceSent>(1).epoch, 2u);
  EXPECT_EQ(backend_.encodes(), 2 * kBuckets);
  EXPECT_NE(events_.Await<event::SourceReleased>(1).digest, before);
}

TEST_F(PublisherTest, DropStopsAnEncodeThatRuns) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() == kBuckets; }));
  Cancel(1, true);
  ASSERT_TRUE(Eventually([&] { return backend_.operations(Kind::kEncode).back().done->Poll().has_value(); }));
  backend_.HoldEncodes(false);
  Flush();
  EXPECT_EQ(events_.Count<event::SourceReleased>() + events_.Count<event::SourceFailed>(), 0u);
  Start(2, 8, true);
  EXPECT_EQ(events_.Await<event::SourceReleased>().version, 8u) << "the cancel hit only its own version";
}

TEST_F(PublisherTest, CancelReachesASessionThatConnects) {
  Open(SourceMode::kFull);
  backend_.HoldConnects(true);
  Start(1, 7, true);
  events_.Await<event::SourceReleased>();
  ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 1; }));
  const absl::Time asked = MonotonicNow();
  Cancel(1, false);
  ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 0; }));
  EXPECT_LT(MonotonicNow() - asked, absl::Seconds(2)) << "the connect timeout is 11 s";
}

// For ever in the network, say. Nothing but a new process gets rid of it.
TEST_F(PublisherTest, AThreadThatDoesNotEndWhatWasCalledOffIsTold) {
  for (const SourceMode mode : {SourceMode::kFull, SourceMode::kRing}) {
    absl::Time now = absl::UnixEpoch();
    const auto look = [&](absl::Duration during) {
      absl::Status last;
      for (const absl::Time end = now + during; now < end;) last = publisher_->Look(now += absl::Milliseconds(250));
      return last;
    };
    Open(mode);
    backend_.HoldConnects(true, /*deaf=*/true);
    Start(1, 7, true);
    ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 1; }));
    EXPECT_TRUE(look(absl::Minutes(1)).ok()) << "it is wanted, and has deadlines";
    Cancel(1, false);
    EXPECT_TRUE(look(WatchedJob::kEndLimit).ok());
    const absl::Status told = look(absl::Milliseconds(500));  // with what a small bucket may take
    EXPECT_TRUE(absl::IsInternal(told));
    EXPECT_THAT(std::string(told.message()), HasSubstr("thread does not end version 7, which was called off 8"));
    backend_.HoldConnects(false);
    ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 0; }));
    Flush();
    EXPECT_TRUE(look(absl::Minutes(1)).ok());
  }
}

TEST_F(PublisherTest, DropReachesTheEncodeOfAnEarlierAttempt) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() == kBuckets; }));
  Cancel(1, false);
  Start(2, 7, true);
  Cancel(2, true);
  EXPECT_TRUE(Eventually([&] { return backend_.operations(Kind::kEncode).back().done->Poll().has_value(); }));
  backend_.HoldEncodes(false);
}

TEST_F(PublisherTest, CancelOfAStartThatWaitsKeepsItFromBeginning) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() == kBuckets; }));
  Start(2, 8, true);
  Cancel(2, false);
  backend_.HoldEncodes(false);
  Flush();
  EXPECT_EQ(events_.Count<event::SourceReleased>(), 1u);
}

TEST_F(PublisherTest, NonFiniteWeightFailsTheVersionForGood) {
  Open(SourceMode::kFull);
  backend_.FailEncode(2, absl::InvalidArgumentError("tensor 'layers.2.weight' has NaN at index 5"));
  Start(1, 7, true);
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_TRUE(failed.version_lost);
  EXPECT_THAT(std::string(failed.status.message()), HasSubstr("NaN at index 5"));
  Flush();
  EXPECT_EQ(events_.Count<event::SourceFailed>(), 1u) << "the broken broadcast is not a second failure";
  EXPECT_EQ(events_.Count<event::SourceReleased>(), 0u);
  backend_.FailEncode(2, absl::OkStatus());
  Start(2, 7, true);
  EXPECT_TRUE(events_.Await<event::SourceFailed>(1).version_lost) << "a restart cannot heal it";
  Cancel(2, true);
  Start(3, 8, true);
  EXPECT_EQ(events_.Await<event::SourceSent>().version, 8u);
}

TEST_F(PublisherTest, BrokenSessionCanBeRetried) {
  PublisherOptions options;
  options.connect_timeout = absl::Milliseconds(20);
  Open(SourceMode::kFull, options);
  backend_.HoldConnects(true);
  Start(1, 7, true);
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_FALSE(failed.version_lost);
  EXPECT_THAT(std::string(failed.status.message()), HasSubstr("rank 1 did not come"));
  backend_.HoldConnects(false);
  Start(2, 7, false);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 2u);
}

TEST_F(PublisherTest, TransferThatIsTooSlowEndsAtItsDeadline) {
  PublisherOptions options;
  options.transfer_timeout = absl::Milliseconds(20);
  options.min_rate_bytes_per_second = 1e12;
  Open(SourceMode::kFull, options);
  backend_.HoldSends(true);
  Start(1, 7, true);
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_TRUE(absl::IsDeadlineExceeded(failed.status));
  EXPECT_FALSE(failed.version_lost);
}

TEST_F(PublisherTest, NextVersionWaitsUntilTheImageIsNotBeingSent) {
  Open(SourceMode::kFull);
  backend_.HoldSends(true);
  Start(1, 7, true);
  events_.Await<event::SourceReleased>();
  Start(2, 8, true);
  EXPECT_EQ(events_.Await<event::SourceReleased>(1).version, 8u);
  EXPECT_EQ(backend_.violations(), 0);
}

TEST_F(PublisherTest, VersionNobodyTakesIsReleasedAndSent) {
  Open(SourceMode::kFull);
  Start(1, 7, true, /*world=*/1);
  EXPECT_EQ(events_.Await<event::SourceSent>().version, 7u);
  EXPECT_EQ(events_.Count<event::SourceReleased>(), 1u);
  EXPECT_TRUE(backend_.operations(Kind::kSend).empty());
}

TEST_F(PublisherTest, CheckContentLeavesTheImageAlone) {
  Open(SourceMode::kFull);
  std::memset(weights_, 0x11, kBuckets * kTestTensorBytes);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  const auto sends = backend_.operations(Kind::kSend);
  const Hash128 same = Flush();
  EXPECT_EQ(same, events_.Await<event::SourceReleased>().digest);
  std::memset(weights_, 0x22, kBuckets * kTestTensorBytes);
  EXPECT_NE(Flush(), same);
  for (const auto& send : sends) EXPECT_EQ(send.data[0], std::byte{0x11});
  Start(2, 7, false);
  EXPECT_EQ(events_.Await<event::SourceSent>(1).epoch, 2u) << "what is retained can still be sent";
}

// A content check of the committed version that fails concerns nobody's copy.
TEST_F(PublisherTest, DroppedCheckLeavesTheImageToBeSentAgain) {
  Open(SourceMode::kFull);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  publisher_->CheckContent({2, 7});
  events_.Await<event::ContentChecked>();
  Cancel(2, true);
  Start(3, 7, false);
  EXPECT_EQ(events_.Await<event::SourceSent>(1).epoch, 3u);
  EXPECT_EQ(events_.Count<event::SourceFailed>(), 0u);
}

TEST_F(PublisherTest, CancelReachesASessionBehindACheck) {
  Open(SourceMode::kFull);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  backend_.HoldSends(true);
  Start(2, 7, false);
  ASSERT_TRUE(Eventually([&] { return backend_.operations(Kind::kSend).size() == 2 * kBuckets; }));
  Flush();
  Cancel(2, false);
  EXPECT_TRUE(Eventually([&] { return backend_.open_sessions() == 0; }));
}

TEST_F(PublisherTest, UnknownVersionCannotBeSentAgain) {
  Open(SourceMode::kFull);
  Start(1, 7, false);
  EXPECT_TRUE(events_.Await<event::SourceFailed>().version_lost);
}

TEST_F(PublisherTest, ImageOutlivesItsRegistration) {
  Open(SourceMode::kFull);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  publisher_->Release();
  Start(2, 7, false);
  EXPECT_EQ(events_.Await<event::SourceSent>(1).epoch, 2u);
  Start(3, 8, true);
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_TRUE(failed.version_lost);
  EXPECT_THAT(std::string(failed.status.message()), HasSubstr("register again"));
}

TEST_F(PublisherTest, RegistrationOfTheSamePlanKeepsTheImage) {
  Open(SourceMode::kFull);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  ASSERT_TRUE(publisher_->Adopt(TestRegistration(backend_, kBuckets, "/second")).ok());
  Start(2, 7, false);
  EXPECT_EQ(events_.Await<event::SourceSent>(1).epoch, 2u);
}

TEST_F(PublisherTest, RegistrationOfAnotherPlanDropsTheImage) {
  Open(SourceMode::kFull);
  Start(1, 7, true);
  events_.Await<event::SourceSent>();
  ASSERT_TRUE(publisher_->Adopt(TestRegistration(backend_, kBuckets + 1, "/second")).ok());
  Start(2, 7, false);
  EXPECT_TRUE(events_.Await<event::SourceFailed>().version_lost);
}

TEST_F(PublisherTest, RegistrationThatDoesNotFitInMemoryLeavesNone) {
  Open(SourceMode::kFull);
  backend_.FailAllocations(true);
  EXPECT_TRUE(absl::IsResourceExhausted(publisher_->Adopt(TestRegistration(backend_, kBuckets + 1, "/second"))));
  Start(1, 7, true);
  EXPECT_TRUE(events_.Await<event::SourceFailed>().version_lost);
}

TEST_F(PublisherTest, DropStopsWhatRunsAndSaysSo) {
  Open(SourceMode::kFull);
  backend_.HoldSends(true);
  Start(1, 7, true);
  events_.Await<event::SourceReleased>();
  publisher_->Drop(absl::AbortedError("the owner died"));
  const auto failed = events_.Await<event::SourceFailed>();
  EXPECT_TRUE(failed.version_lost);
  EXPECT_THAT(std::string(failed.status.message()), HasSubstr("the owner died"));
  EXPECT_EQ(backend_.open_sessions(), 0);
}

TEST_F(PublisherTest, StopEndsEvenWhatIsStuck) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  backend_.HoldConnects(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() == kBuckets; }));
  publisher_->Stop();
  EXPECT_EQ(backend_.open_sessions(), 0);
  EXPECT_TRUE(absl::IsUnavailable(publisher_->Adopt(TestRegistration(backend_, kBuckets))));
}

TEST_F(PublisherTest, ProgressCountsEncodedAndSentBytes) {
  Open(SourceMode::kFull);
  backend_.HoldEncodes(true);
  Start(1, 7, true);
  ASSERT_TRUE(Eventually([&] { return backend_.operations(Kind::kSend).size() == kBuckets; }));
  EXPECT_TRUE(publisher_->Progress().encoding);
  EXPECT_EQ(publisher_->Progress().encoded_bytes, 0);
  backend_.HoldEncodes(false);
  events_.Await<event::SourceSent>();
  const SourceProgress progress = publisher_->Progress();
  EXPECT_EQ(progress.version, 7u);
  EXPECT_GT(progress.total_bytes, kBuckets * kTestTensorBytes);
  EXPECT_EQ(progress.encoded_bytes, progress.total_bytes);
  EXPECT_EQ(progress.sent_bytes, progress.total_bytes);
}

}  // namespace
}  // namespace wsync
