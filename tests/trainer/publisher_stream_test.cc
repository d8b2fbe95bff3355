// The publisher, ordered against a stream of the training process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/trainer/publisher_testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

TEST_F(PublisherTest, NoEncodeIsStartedBeforeTheTrainersStreamGotThere) {
  for (const SourceMode mode : {SourceMode::kFull, SourceMode::kRing}) {
    const int64_t encoded = backend_.encodes();
    const size_t released = events_.Count<event::SourceReleased>();
    const size_t sent = events_.Count<event::SourceSent>();
    Open(mode);
    Start(1, 7, Order());
    ASSERT_TRUE(after_->IsAwaited());
    ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 1; })) << "members need not wait to connect";
    EXPECT_EQ(backend_.encodes(), encoded);
    after_->Come();
    events_.Await<event::SourceSent>(sent);
    EXPECT_EQ(backend_.encodes(), encoded + kBuckets);
    EXPECT_EQ(events_.Count<event::SourceReleased>(), released + 1);
  }
}

TEST_F(PublisherTest, AStreamThatNeverGetsThereFailsTheVersionInTimeAndTheNextOneGoes) {
  for (const SourceMode mode : {SourceMode::kFull, SourceMode::kRing}) {
    const size_t failures = events_.Count<event::SourceFailed>();
    const size_t sent = events_.Count<event::SourceSent>();
    const int64_t encoded = backend_.encodes();
    Open(mode, {.start_timeout = absl::Milliseconds(50)});
    Start(1, 7, Order());
    const auto failed = events_.Await<event::SourceFailed>(failures);
    EXPECT_TRUE(failed.version_lost);
    EXPECT_TRUE(absl::IsDeadlineExceeded(failed.status)) << failed.status;
    EXPECT_THAT(std::string(failed.status.message()), HasSubstr("stream did not get to the point of its publish"));
    EXPECT_EQ(backend_.encodes(), encoded);
    after_->Come();
    Start(2, 7, OrderAfter("after"));
    events_.Await<event::SourceSent>(sent);
    EXPECT_EQ(events_.Count<event::SourceFailed>(), failures + 1) << "it is told once";
  }
}

TEST_F(PublisherTest, ASessionThatIsCalledOffDoesNotWaitForTheTrainersStream) {
  for (const SourceMode mode : {SourceMode::kFull, SourceMode::kRing}) {
    const size_t sent = events_.Count<event::SourceSent>();
    Open(mode, {.start_timeout = absl::Hours(1)});
    Start(1, 7, Order());
    ASSERT_TRUE(after_->IsAwaited());
    ASSERT_TRUE(Eventually([&] { return backend_.open_sessions() == 1; }));
    Cancel(1, false);
    EXPECT_TRUE(Eventually([&] { return backend_.open_sessions() == 0; }));
    Start(2, 7, OrderAfter("after"));
    after_->Come();
    EXPECT_EQ(events_.Await<event::SourceSent>(sent).epoch, 2u) << "the version itself is wanted";
  }
}

TEST_F(PublisherTest, AVersionThatIsDroppedDoesNotWaitForTheTrainersStream) {
  for (const SourceMode mode : {SourceMode::kFull, SourceMode::kRing}) {
    const size_t sent = events_.Count<event::SourceSent>();
    Open(mode, {.start_timeout = absl::Hours(1)});
    Start(1, 7, Order());
    ASSERT_TRUE(after_->IsAwaited());
    Cancel(1, true);
    Start(2, 8, true);
    EXPECT_EQ(events_.Await<event::SourceSent>(sent).version, 8u);
    EXPECT_EQ(events_.Count<event::SourceFailed>(), 0u) << "the coordinator knows";
  }
}

TEST_F(PublisherTest, ADeviceThatFailsWhileTheStreamIsWaitedForFailsTheVersion) {
  Open(SourceMode::kFull);
  Start(1, 7, Order());
  after_->Fail(absl::InternalError("the GPU fell off"));
  EXPECT_EQ(events_.Await<event::SourceFailed>().status, absl::InternalError("the GPU fell off"));
  EXPECT_EQ(backend_.encodes(), 0);
}

TEST_F(PublisherTest, InRingModeAVersionThatLosesAMemberIsReadAgainInTheSameOrder) {
  Open(SourceMode::kRing);
  const auto order = Order();
  after_->Come();
  backend_.HoldSends(true);
  Start(1, 7, order);
  ASSERT_TRUE(Eventually([&] { return backend_.encodes() > 0; }));
  Cancel(1, false);  // a member was lost; the coordinator starts the version again
  backend_.HoldSends(false);
  Start(2, 7, order);
  EXPECT_EQ(events_.Await<event::SourceSent>().epoch, 2u);
}

TEST_F(PublisherTest, AnEventThatCannotBeOpenedFailsTheVersionBeforeAnythingIsRead) {
  Open(SourceMode::kFull);
  Start(1, 7, OrderAfter("of nobody"));
  EXPECT_TRUE(absl::IsNotFound(events_.Await<event::SourceFailed>().status));
  EXPECT_EQ(backend_.encodes(), 0);
  Start(2, 7, true);
  EXPECT_EQ(events_.Await<event::SourceReleased>().version, 7u);
}

TEST_F(PublisherTest, EventsAreOpenedOnceAndForgottenWithTheMemory) {
  Open(SourceMode::kFull);
  backend_.LendEvent("after")->Come();
  for (uint64_t v = 1; v <= 3; ++v) {
    Start(v, v, OrderAfter("after"));
    events_.Await<event::SourceSent>(v - 1);
  }
  EXPECT_EQ(backend_.opened_events(), 1);
  ASSERT_TRUE(publisher_->Adopt(TestRegistration(backend_, kBuckets)).ok());
  Start(4, 4, OrderAfter("after"));
  events_.Await<event::SourceSent>(3);
  EXPECT_EQ(backend_.opened_events(), 2);
}

TEST_F(PublisherTest, AContentCheckIsOrderedAgainstTheStreamAsWell) {
  Open(SourceMode::kFull);
  publisher_->CheckContent({7}, Order());
  ASSERT_TRUE(after_->IsAwaited());
  EXPECT_EQ(backend_.encodes(), 0);
  after_->Come();
  EXPECT_EQ(events_.Await<event::ContentChecked>().status, absl::OkStatus());
}

}  // namespace
}  // namespace wsync
