// The receiver, ordered against the engine's stream.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "server/rollout/receiver.h"
#include "tests/rollout/receiver_testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

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

}  // namespace
}  // namespace wsync
