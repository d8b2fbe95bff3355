// Versions that are received in place: a ring, live memory, and layers that are told.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/ring.h"
#include "server/core/sync.h"
#include "server/rollout/receiver.h"
#include "server/rollout/underlay.h"
#include "tests/rollout/receiver_testing.h"

namespace wsync {
namespace {

TEST_F(ReceiverTest, InPlaceWritesThroughARingOfTwoSlots) {
  Use({.mode = SinkMode::kInPlace, .ring_slots = 2});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  EXPECT_EQ(script_.allocated_bytes(), RingLayout(*plan_, 2).bytes());
  ASSERT_TRUE(Attach(Spec(*plan_)).ok());
  EXPECT_EQ(script_.allocated_bytes(), BytesOfDigestTables(*plan_));
  ASSERT_GT(plan_->buckets().size(), 4u);
  const sink::Received received = Receive(7);
  ASSERT_TRUE(received.status.ok()) << received.status;
  EXPECT_EQ(received.digest, ContentOf(7));
  EXPECT_TRUE(received.wrote);
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, InPlaceOfASliceCannotBeReadAgainAndSaysWhy) {
  Use({.mode = SinkMode::kInPlace, .ring_slots = 2});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  AttachSpec spec = Spec(*plan_);
  ASSERT_GT(spec.destinations[0].col_end, 1);
  --spec.destinations[0].col_end;
  ASSERT_TRUE(Attach(std::move(spec)).ok());
  ASSERT_TRUE(Receive(7).status.ok());
  Answer<absl::StatusOr<Hash128>> answer;
  receiver_->Verify(answer.Callback());
  const absl::StatusOr<Hash128> digest = answer.Get();
  EXPECT_EQ(digest.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(digest.status().message().find("slices of tensors"), std::string::npos) << digest.status();
}

TEST_F(ReceiverTest, InPlaceSlotIsFilledAgainOnlyWhenItWasApplied) {
  MakeReady(SinkMode::kInPlace);
  script_.HoldApply(true);
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  receiver_->Receive(answer.Callback());
  receiver_->EnginePaused();
  AwaitReceived(2);
  EXPECT_EQ(script_.applied(), 0);
  script_.HoldApply(false);
  EXPECT_TRUE(answer.Get().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, InPlaceTheRingFillsUpWhileTheEngineIsBeingPaused) {
  MakeReady(SinkMode::kInPlace);
  ASSERT_TRUE(Receive(6).status.ok());
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  receiver_->Receive(answer.Callback());
  AwaitReceived(2);
  EXPECT_TRUE(EngineHolds(6));
  receiver_->EnginePaused();
  EXPECT_TRUE(answer.Get().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, InPlaceACancelBeforeThePauseLeavesLiveMemoryUntouched) {
  MakeReady(SinkMode::kInPlace);
  ASSERT_TRUE(Receive(6).status.ok());
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  receiver_->Receive(answer.Callback());
  AwaitReceived(2);
  receiver_->Cancel(absl::AbortedError("no"));
  const sink::Received received = answer.Get();
  EXPECT_EQ(received.status.code(), absl::StatusCode::kAborted);
  EXPECT_FALSE(received.wrote);
  EXPECT_TRUE(EngineHolds(6));
  EXPECT_TRUE(Receive(8).status.ok());
  EXPECT_TRUE(EngineHolds(8));
}

TEST_F(ReceiverTest, InPlaceTellsEachLayerOnceItsBytesAreInLiveMemory) {
  Use({.mode = SinkMode::kInPlace, .ring_slots = 2});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  AttachSpec spec = Spec(*plan_);
  spec.layer_events = true;
  ASSERT_TRUE(Attach(std::move(spec)).ok());
  script_.HoldApply(true);
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  Mutex mu;
  std::vector<LayerReady> told;
  receiver_->Receive(answer.Callback(), {.ready = [&](LayerReady layer) {
                       MutexLock lock(&mu);
                       told.push_back(std::move(layer));
                     }});
  receiver_->EnginePaused();
  AwaitReceived(2);
  {
    MutexLock lock(&mu);
    EXPECT_TRUE(told.empty());  // received and checked is not yet applied
  }
  script_.HoldApply(false);
  EXPECT_TRUE(answer.Get().status.ok());
  MutexLock lock(&mu);
  ASSERT_EQ(told.size(), 7u);
  EXPECT_EQ(told[0].name, "");  // the norm
  for (int64_t i = 1; i < 7; ++i) EXPECT_EQ(told[i].name, absl::StrCat("model.layers.", i - 1));
  EXPECT_EQ(told[6].ready, 7);
  EXPECT_EQ(told[6].layers, 7);
}

TEST_F(ReceiverTest, LayersAreToldOnlyInPlaceAndOnlyWhereAskedFor) {
  int told = 0;
  for (const bool ask : {false, true}) {
    Use({.mode = ask ? SinkMode::kStaged : SinkMode::kInPlace, .ring_slots = 2});
    ASSERT_TRUE(SetCatalog(plan_).status.ok());
    AttachSpec spec = Spec(*plan_);
    spec.layer_events = ask;
    ASSERT_TRUE(Attach(std::move(spec)).ok());
    script_.SetVersion(7);
    ASSERT_TRUE(Connect().status.ok());
    Answer<sink::Received> answer;
    receiver_->Receive(answer.Callback(), {.ready = [&](const LayerReady&) { ++told; }});
    receiver_->EnginePaused();
    EXPECT_TRUE(answer.Get().status.ok());
  }
  EXPECT_EQ(told, 0);
}

TEST_F(ReceiverTest, InPlaceFailureSaysWhetherLiveMemoryWasTouched) {
  MakeReady(SinkMode::kInPlace);
  script_.DeliverUpTo(1);
  script_.Corrupt(0);
  EXPECT_FALSE(Receive(7).wrote);
  script_.DeliverUpTo(Script::kAll);
  script_.Corrupt(3);
  const sink::Received torn = Receive(8);
  EXPECT_EQ(torn.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(torn.bucket, 3);
  EXPECT_TRUE(torn.wrote);
  EXPECT_TRUE(Receive(9).status.ok());
  EXPECT_TRUE(EngineHolds(9));
}

}  // namespace
}  // namespace wsync
