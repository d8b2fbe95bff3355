// The receiver's thread: sessions, staged versions, catalogs and engines.
#include "server/rollout/receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/rollout/receiver_testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

TEST_F(ReceiverTest, StagedVersionReachesTheEngineOnlyByApply) {
  MakeReady(SinkMode::kStaged);
  EXPECT_EQ(script_.allocated_bytes(), plan_->image_bytes());
  const sink::Received received = Receive(7);
  ASSERT_TRUE(received.status.ok()) << received.status;
  EXPECT_EQ(received.digest, ContentOf(7));
  EXPECT_FALSE(received.wrote);
  EXPECT_EQ(receiver_->received_bytes(), plan_->image_bytes());
  EXPECT_EQ(script_.applied(), 0);
  EXPECT_FALSE(EngineHolds(7));
  ASSERT_TRUE(Apply().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, CorruptedBucketFailsWithItsNumberAndLeavesTheOldVersion) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(6).status.ok());
  ASSERT_TRUE(Apply().status.ok());
  script_.Corrupt(2);
  const sink::Received received = Receive(7);
  EXPECT_EQ(received.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(received.bucket, 2);
  EXPECT_FALSE(received.wrote);
  EXPECT_TRUE(EngineHolds(6));
  EXPECT_TRUE(Receive(8).status.ok());
}

TEST_F(ReceiverTest, VersionsOfOneSessionArriveThroughOneTransport) {
  MakeReady(SinkMode::kInPlace);
  for (const uint64_t version : {6, 7, 8}) {
    ASSERT_TRUE(Receive(version).status.ok());
    EXPECT_TRUE(EngineHolds(version));
    EXPECT_EQ(receiver_->received_bytes(), plan_->image_bytes());
  }
  EXPECT_EQ(script_.sessions(), 1);
  EXPECT_TRUE(Connect("another").status.ok());
  EXPECT_EQ(script_.sessions(), 2);
}

TEST_F(ReceiverTest, SessionInWhichSomethingFailedIsNotGoneOnIn) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(6).status.ok());
  script_.Corrupt(1);
  EXPECT_FALSE(Receive(7).status.ok());
  ASSERT_EQ(script_.sessions(), 1);
  EXPECT_TRUE(Receive(8).status.ok());
  EXPECT_EQ(script_.sessions(), 2);
  receiver_->Cancel(absl::AbortedError("called off while idle"));
  EXPECT_TRUE(Receive(9).status.ok());
  EXPECT_EQ(script_.sessions(), 3);
}

TEST_F(ReceiverTest, CancelEndsARunningReceiveAtOnce) {
  MakeReady(SinkMode::kStaged);
  script_.DeliverUpTo(2);
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  receiver_->Receive(answer.Callback());
  AwaitReceived(2);
  const absl::Time cancelled = MonotonicNow();
  receiver_->Cancel(absl::AbortedError("rollout-1 is gone"));
  const sink::Received received = answer.Get();
  EXPECT_LT(MonotonicNow() - cancelled, absl::Seconds(5));
  EXPECT_EQ(received.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(received.status.message(), HasSubstr("rollout-1 is gone"));
  EXPECT_EQ(received.bucket, 2);
}

TEST_F(ReceiverTest, CancelEndsARunningConnectAndJobsThatWaitButNotLaterOnes) {
  MakeReady(SinkMode::kStaged);
  script_.HoldConnect(true);
  Answer<sink::Connected> connected;
  Answer<sink::Received> received;
  receiver_->Connect({"token", 1, 2, "nowhere"}, connected.Callback());
  receiver_->Receive(received.Callback());
  receiver_->Cancel(absl::AbortedError("no"));
  EXPECT_EQ(connected.Get().status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(received.Get().status.code(), absl::StatusCode::kAborted);
  script_.HoldConnect(false);
  EXPECT_TRUE(Receive(7).status.ok());
}

// For ever in the network, say. Nothing but a new process gets rid of it.
TEST_F(ReceiverTest, AThreadThatDoesNotEndWhatWasCalledOffIsTold) {
  MakeReady(SinkMode::kStaged);
  absl::Time now = absl::UnixEpoch();
  const auto look = [&](absl::Duration during) {
    absl::Status last;
    for (const absl::Time end = now + during; now < end;) last = receiver_->Look(now += absl::Milliseconds(250));
    return last;
  };
  script_.HoldConnect(true, /*deaf=*/true);
  Answer<sink::Connected> connected;
  receiver_->Connect({"token", 1, 2, "nowhere"}, connected.Callback());
  AwaitSessions(1);
  EXPECT_TRUE(look(absl::Minutes(1)).ok()) << "it is wanted, and has deadlines";
  receiver_->Cancel(absl::AbortedError("no"));
  EXPECT_TRUE(look(ReceiverOptions().end_limit).ok());
  const absl::Status told = look(absl::Milliseconds(250));
  EXPECT_TRUE(absl::IsInternal(told));
  EXPECT_THAT(told.message(), HasSubstr("the receive thread is still connecting 8s after that was called off"));
  script_.HoldConnect(false);
  connected.Get();
  EXPECT_TRUE(look(absl::Minutes(1)).ok());
}

TEST_F(ReceiverTest, ConnectHasADeadline) {
  Use({.connect_timeout = absl::Milliseconds(50)});
  script_.HoldConnect(true);
  EXPECT_EQ(Connect().status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ReceiverTest, TransferThatDoesNotMoveEndsByItself) {
  Use({.stall_timeout = absl::Milliseconds(50)});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  ASSERT_TRUE(Attach(Spec(*plan_)).ok());
  script_.DeliverUpTo(1);
  const sink::Received received = Receive(7);
  EXPECT_EQ(received.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(received.status.message(), HasSubstr("no byte arrived for 50ms"));
  EXPECT_EQ(received.bucket, 1);
}

TEST_F(ReceiverTest, FailedCopyIsTold) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(7).status.ok());
  script_.FailApply(1);
  EXPECT_EQ(Apply().status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(Apply().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, AllocationFailureIsAReasonAndTheNextCatalogTriesAgain) {
  Use({});
  script_.FailAllocation(true);
  const PlanResult failed = SetCatalog(plan_);
  EXPECT_EQ(failed.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(failed.plan, nullptr);
  script_.FailAllocation(false);
  const PlanResult made = SetCatalog(plan_);
  EXPECT_TRUE(made.status.ok());
  EXPECT_TRUE(made.changed);
}

TEST_F(ReceiverTest, SameCatalogAgainKeepsWhatIsStaged) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(7).status.ok());
  const PlanResult again = SetCatalog(plan_);
  EXPECT_TRUE(again.status.ok());
  EXPECT_FALSE(again.changed);
  EXPECT_TRUE(Apply().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, PlanOfAnotherHashNamesBothAndWhatToDo) {
  Use({});
  AnnouncedCatalog catalog = Announce(plan_);
  catalog.plan_hash = Hash128{1, 1};
  Answer<PlanResult> answer;
  receiver_->SetCatalog(catalog, answer.Callback());
  const PlanResult result = answer.Get();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(result.status.message(), HasSubstr(plan_->hash().Hex()));
  EXPECT_THAT(result.status.message(), HasSubstr(Hash128({1, 1}).Hex()));
  EXPECT_THAT(result.status.message(), HasSubstr("same wsync version"));
}

TEST_F(ReceiverTest, DestinationsThatDoNotFitAreListed) {
  Use({});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  AttachSpec spec = Spec(*plan_);
  spec.destinations[1].dtype = Dtype::kBF16;
  const auto attached = Attach(spec);
  EXPECT_EQ(attached.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(attached.status().message(), HasSubstr(spec.destinations[1].output));
}

TEST_F(ReceiverTest, HandleThatCannotBeOpenedIsNamed) {
  Use({});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  AttachSpec spec = Spec(*plan_);
  spec.handles.push_back(SharedMemoryHandle{"/missing", 8});
  const auto attached = Attach(spec);
  EXPECT_EQ(attached.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(attached.status().message(), HasSubstr("memory handle 1"));
}

TEST_F(ReceiverTest, ChangedCatalogKeepsAnEngineThatFitsAndLetsGoOfOneThatDoesNot) {
  MakeReady(SinkMode::kStaged);
  const auto other_buckets = Plan::Create(std::make_shared<const Catalog>(*Catalog::Create(SmallCatalog(6))),
                                          RecipeRules{}, 2 * kMinBucketBytes);
  ASSERT_TRUE(SetCatalog(*other_buckets).attachment.ok());
  plan_ = *other_buckets;
  ASSERT_TRUE(Receive(7).status.ok());
  ASSERT_TRUE(Apply().status.ok());
  EXPECT_TRUE(EngineHolds(7));

  const PlanResult result = SetCatalog(PlanOf(SmallCatalog(7)));
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.attachment.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Apply().status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ReceiverTest, StopEndsARunningReceive) {
  MakeReady(SinkMode::kStaged);
  script_.DeliverUpTo(1);
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  receiver_->Receive(answer.Callback());
  AwaitReceived(1);
  receiver_->Stop();
  EXPECT_EQ(answer.Get().status.code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace wsync
