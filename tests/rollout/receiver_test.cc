// The receiver's thread over a backend that the test controls.
#include "server/rollout/receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "absl/strings/str_cat.h"
#include "server/core/ring.h"
#include "server/rollout/underlay.h"
#include "tests/rollout/fake_backend.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

// The answer of a job, waited for with a deadline.
template <typename T>
class Answer {
 public:
  std::function<void(T)> Callback() {
    return [promise = promise_](T value) { promise->set_value(std::move(value)); };
  }
  T Get() {
    auto future = promise_->get_future();
    EXPECT_EQ(future.wait_for(absl::ToChronoSeconds(kPatience)), std::future_status::ready) << "no answer";
    return future.get();
  }

 private:
  std::shared_ptr<std::promise<T>> promise_ = std::make_shared<std::promise<T>>();
};

class ReceiverTest : public ::testing::Test {
 protected:
  void Use(ReceiverOptions options) {
    receiver_.reset();
    receiver_.emplace(backend_.get(), options);
  }
  PlanResult SetCatalog(const std::shared_ptr<const Plan>& plan) {
    Answer<PlanResult> answer;
    receiver_->SetCatalog(Announce(plan), answer.Callback());
    return answer.Get();
  }
  static AnnouncedCatalog Announce(const std::shared_ptr<const Plan>& plan) {
    return {plan->catalog().tensors(), plan->rules(), plan->bucket_bytes(), plan->catalog().fingerprint(),
            plan->hash()};
  }
  AttachSpec Spec(const Plan& plan) {
    AttachSpec spec{.engine = "test", .pid = 1};
    int64_t bytes = 0;
    spec.destinations = WholeDestinations(plan, &bytes);
    script_.AddEngineMemory("/engine", bytes);
    spec.handles = {SharedMemoryHandle{"/engine", bytes}};
    return spec;
  }
  absl::StatusOr<AttachInfo> Attach(AttachSpec spec) {
    Answer<absl::StatusOr<AttachInfo>> answer;
    receiver_->Attach(std::move(spec), answer.Callback());
    return answer.Get();
  }
  void MakeReady(SinkMode mode) {
    Use({.mode = mode, .ring_slots = 2});
    ASSERT_TRUE(SetCatalog(plan_).status.ok());
    ASSERT_TRUE(Attach(Spec(*plan_)).ok());
  }
  sink::Connected Connect(const std::string& token = "token") {
    Answer<sink::Connected> answer;
    receiver_->Connect({token, 1, 2, "nowhere"}, answer.Callback());
    return answer.Get();
  }
  sink::Received Receive(uint64_t version) {
    script_.SetVersion(version);
    EXPECT_TRUE(Connect().status.ok());
    Answer<sink::Received> answer;
    receiver_->Receive(answer.Callback());
    receiver_->EnginePaused();
    return answer.Get();
  }
  sink::ApplyDone Apply() {
    Answer<sink::ApplyDone> answer;
    receiver_->Apply(answer.Callback());
    return answer.Get();
  }
  void AwaitReceived(int64_t buckets) {
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (script_.received() < buckets && MonotonicNow() < deadline) std::this_thread::yield();
    ASSERT_EQ(script_.received(), buckets);
  }
  bool EngineHolds(uint64_t version) { return script_.EngineMemoryIs("/engine", ExpectedMemory(*plan_, version)); }
  Hash128 ContentOf(uint64_t version) { return plan_->ContentDigest(SourceDigests(*plan_, version)); }

  Script script_;
  std::unique_ptr<Backend> backend_ = NewFakeBackend(&script_);
  std::shared_ptr<const Plan> plan_ = PlanOf(SmallCatalog(6));
  std::optional<Receiver> receiver_;
};

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

TEST_F(ReceiverTest, FailedCopyIsTold) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(7).status.ok());
  script_.FailApply(1);
  EXPECT_EQ(Apply().status.code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(Apply().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

// ---- ordered against the engine's stream

constexpr char kAfter[] = "after";
EventHandle After() { return {kAfter, FakeClientEvents::kUuid}; }

TEST_F(ReceiverTest, ACopyWaitsForTheEnginesStream) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(7).status.ok());
  const auto after = script_.events.Lend(kAfter);
  Answer<sink::ApplyDone> done;
  receiver_->Apply(done.Callback(), After());
  ASSERT_TRUE(after->IsAwaited());
  EXPECT_EQ(script_.applied(), 0);
  after->Come();
  const sink::ApplyDone result = done.Get();
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, ForAnEngineWhoseStreamDoesNotComeNothingIsWritten) {
  Use({.mode = SinkMode::kStaged, .pause_timeout = absl::Milliseconds(50)});
  ASSERT_TRUE(SetCatalog(plan_).status.ok());
  ASSERT_TRUE(Attach(Spec(*plan_)).ok());
  ASSERT_TRUE(Receive(7).status.ok());
  const auto after = script_.events.Lend(kAfter);
  Answer<sink::ApplyDone> done;
  receiver_->Apply(done.Callback(), After());
  const sink::ApplyDone result = done.Get();
  EXPECT_TRUE(absl::IsDeadlineExceeded(result.status)) << result.status;
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("stream did not get to the point of its pause"));
  EXPECT_FALSE(result.wrote);
  EXPECT_EQ(script_.applied(), 0);
  EXPECT_TRUE(Apply().status.ok()) << "the copy is still there for an engine that has paused";
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, AnEngineThatGoesWhileItsStreamIsWaitedForIsNotWaitedForAnyLonger) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(7).status.ok());
  const auto after = script_.events.Lend(kAfter);
  Answer<sink::ApplyDone> done;
  receiver_->Apply(done.Callback(), After());
  ASSERT_TRUE(after->IsAwaited());
  receiver_->Detach();
  const sink::ApplyDone result = done.Get();
  EXPECT_EQ(result.status, absl::UnavailableError("the engine is gone"));
  EXPECT_FALSE(result.wrote);
  EXPECT_EQ(script_.applied(), 0);
}

TEST_F(ReceiverTest, AnEventThatCannotBeOpenedFailsTheApplyBeforeAnythingIsWritten) {
  MakeReady(SinkMode::kStaged);
  ASSERT_TRUE(Receive(7).status.ok());
  Answer<sink::ApplyDone> done;
  receiver_->Apply(done.Callback(), After());
  const sink::ApplyDone result = done.Get();
  EXPECT_TRUE(absl::IsNotFound(result.status)) << result.status;
  EXPECT_FALSE(result.wrote);
}

TEST_F(ReceiverTest, InPlaceNothingIsWrittenBeforeTheEnginesStreamHasCome) {
  MakeReady(SinkMode::kInPlace);
  const auto after = script_.events.Lend(kAfter);
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> received;
  receiver_->Receive(received.Callback());
  receiver_->EnginePaused(After());
  ASSERT_TRUE(after->IsAwaited());
  EXPECT_EQ(script_.applied(), 0);
  after->Come();
  EXPECT_TRUE(received.Get().status.ok());
  EXPECT_TRUE(EngineHolds(7));
}

TEST_F(ReceiverTest, InPlaceACancelEndsTheWaitForTheEnginesStream) {
  MakeReady(SinkMode::kInPlace);
  script_.events.Lend(kAfter);
  script_.SetVersion(7);
  ASSERT_TRUE(Connect().status.ok());
  Answer<sink::Received> answer;
  receiver_->Receive(answer.Callback());
  receiver_->EnginePaused(After());
  receiver_->Cancel(absl::AbortedError("a member was lost"));
  const sink::Received received = answer.Get();
  EXPECT_EQ(received.status, absl::AbortedError("a member was lost"));
  EXPECT_FALSE(received.wrote);
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
