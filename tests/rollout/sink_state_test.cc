// The sink's mind, event by event, without any I/O.
#include "server/rollout/sink_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr Hash128 kPlan{1, 2};
constexpr Hash128 kContent{7, 7};

std::string Name(const event::ReadyChanged& e) {
  return absl::StrCat(e.ready ? "ready" : "not ready", e.torn ? " torn" : "", " serving ", e.serving.version);
}
std::string Name(const event::Staged& e) { return absl::StrCat("staged ", e.version); }
std::string Name(const event::Applied& e) { return absl::StrCat("applied ", e.version); }
std::string Name(const event::Failed& e) { return absl::StrCat(e.torn ? "failed torn " : "failed ", e.version); }
template <typename T>
std::string Name(const T&) {
  return "?";
}
struct Namer {
  std::string operator()(const sink::Report& a) const {
    return std::visit([](const auto& e) { return Name(e); }, a.message);
  }
  std::string operator()(const sink::Connect& a) const { return absl::StrCat("connect ", a.begin.version); }
  std::string operator()(const sink::Receive& a) const { return absl::StrCat("receive ", a.version); }
  std::string operator()(const sink::WriteLive& a) const { return absl::StrCat("write ", a.version); }
  std::string operator()(const sink::Apply& a) const { return absl::StrCat("apply ", a.version); }
  std::string operator()(const sink::Cancel&) const { return "cancel"; }
  std::string operator()(const sink::TellPrepare& a) const {
    return absl::StrCat("-> prepare ", a.version, a.in_place ? " in place" : "");
  }
  std::string operator()(const sink::TellApply& a) const { return absl::StrCat("-> apply ", a.version); }
  std::string operator()(const sink::TellApplied& a) const { return absl::StrCat("-> applied ", a.version); }
  std::string operator()(const sink::TellTorn& a) const { return absl::StrCat("-> torn ", a.version); }
  std::string operator()(const sink::TellCancelled& a) const { return absl::StrCat("-> cancelled ", a.version); }
  std::string operator()(const sink::Detach&) const { return "detach"; }
};

class SinkStateTest : public ::testing::Test {
 protected:
  // Every action as a word, in order.
  std::vector<std::string> Step(const sink::Event& event) {
    last_ = state_->Step(now_, event);
    std::vector<std::string> names;
    for (const sink::Action& action : last_) names.push_back(std::visit(Namer{}, action));
    return names;
  }
  const event::Failed* LastFailed() const {
    for (const sink::Action& action : last_) {
      const auto* report = std::get_if<sink::Report>(&action);
      if (report == nullptr) continue;
      if (const auto* failed = std::get_if<event::Failed>(&report->message)) return failed;
    }
    return nullptr;
  }
  std::string NotReadyReason() const {
    for (const sink::Action& action : last_) {
      const auto* report = std::get_if<sink::Report>(&action);
      if (report == nullptr) continue;
      if (const auto* ready = std::get_if<event::ReadyChanged>(&report->message)) return ready->reason;
    }
    return "no Ready was sent";
  }

  void Use(SinkMode mode) { state_.emplace(SinkOptions{.mode = mode}); }
  void Attach() {
    Step(sink::EngineAttached{"vllm (pid 1)"});
    Step(sink::EngineOpened{});
  }
  void MakeReady(SinkMode mode = SinkMode::kStaged) {
    Use(mode);
    Step(sink::Linked{});
    Step(sink::CatalogChanging{});
    Step(sink::PlanReady{absl::OkStatus(), kPlan});
    Attach();
    ASSERT_EQ(state_->not_ready(), "");
  }
  static sink::Begin Begin(uint64_t epoch, uint64_t version) {
    return {.epoch = epoch, .version = version, .plan_hash = kPlan, .session = "s", .rank = 1, .world = 2};
  }
  void Receive(uint64_t epoch, uint64_t version) {
    Step(Begin(epoch, version));
    Step(sink::Connected{});
  }
  void Stage(uint64_t epoch, uint64_t version) {
    Receive(epoch, version);
    Step(sink::Received{.digest = kContent, .wrote = true});
  }
  void Commit(uint64_t epoch, uint64_t version) { Step(sink::Commit{epoch, version, kContent}); }
  void Serve(uint64_t epoch, uint64_t version) {
    Stage(epoch, version);
    Commit(epoch, version);
    Step(sink::EnginePaused{version});
    Step(sink::ApplyDone{});
    ASSERT_EQ(state_->serving().version, version);
  }

  std::optional<SinkState> state_;
  absl::Time now_ = absl::UnixEpoch();
  sink::Actions last_;
};

TEST_F(SinkStateTest, StagedVersionGoesFromBeginToAppliedWithTwoReports) {
  MakeReady();
  EXPECT_THAT(Step(Begin(1, 7)), ElementsAre("-> prepare 7", "connect 7"));
  EXPECT_THAT(Step(sink::Connected{}), ElementsAre("receive 7"));
  EXPECT_THAT(Step(sink::Received{.digest = kContent}), ElementsAre("staged 7"));
  EXPECT_EQ(state_->serving().version, 0u);
  EXPECT_THAT(Step(sink::Commit{1, 7, kContent}), ElementsAre("-> apply 7"));
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "applied 7"));
  EXPECT_EQ(state_->serving(), (ServedVersion{7, kContent}));
}

TEST_F(SinkStateTest, InPlaceAsksForThePauseAtBeginReceivesMeanwhileAndWritesOnlyThen) {
  MakeReady(SinkMode::kInPlace);
  EXPECT_THAT(Step(Begin(1, 7)), ElementsAre("-> prepare 7 in place", "connect 7"));
  EXPECT_THAT(Step(sink::Connected{}), ElementsAre("receive 7"));
  EXPECT_EQ(state_->phase(), MemberPhase::kPause);
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("write 7"));
  EXPECT_EQ(state_->phase(), MemberPhase::kReceive);
  EXPECT_THAT(Step(sink::Received{.digest = kContent, .wrote = true}), ElementsAre("staged 7"));
  EXPECT_THAT(Step(sink::Commit{1, 7, kContent}), ElementsAre("-> applied 7", "applied 7"));
}

TEST_F(SinkStateTest, InPlacePauseMayComeBeforeTheConnection) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  EXPECT_THAT(Step(sink::EnginePaused{7}), IsEmpty());
  EXPECT_THAT(Step(sink::Connected{}), ElementsAre("receive 7", "write 7"));
}

TEST_F(SinkStateTest, InPlaceAnEngineThatDoesNotPauseFailsTheVersionUntouchedAndIsNamed) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::Connected{});
  now_ = state_->NextDeadline();
  EXPECT_THAT(Step(sink::Tick{}), ElementsAre("failed 7", "cancel"));
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kPause);
  EXPECT_THAT(std::string(LastFailed()->status.message()), HasSubstr("did not pause for version 7"));
  EXPECT_THAT(Step(sink::Received{.status = absl::CancelledError("x")}), IsEmpty());
  EXPECT_FALSE(state_->busy());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7"));
}

// A dead peer breaks the transport of a sink whose engine has not paused yet: that must not look like the sink's fault.
TEST_F(SinkStateTest, InPlaceABrokenSessionBeforeThePauseIsAFailureToReceive) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::Connected{});
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x")}), ElementsAre("failed 7"));
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kReceive);
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7"));
}

TEST_F(SinkStateTest, InPlaceAnEngineLostBeforeItPausedIsNotTorn) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::Connected{});
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("failed 7", "cancel", "not ready serving 0"));
}

TEST_F(SinkStateTest, PauseTimeIsFromPausedToApplied) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  now_ += absl::Seconds(2);
  Step(sink::EnginePaused{7});
  now_ += absl::Milliseconds(5);
  Step(sink::ApplyDone{.apply = absl::Milliseconds(4)});
  const auto& applied = std::get<sink::TellApplied>(last_.front());
  EXPECT_EQ(applied.timings.pause, absl::Milliseconds(5));
  EXPECT_EQ(applied.timings.apply, absl::Milliseconds(4));
}

TEST_F(SinkStateTest, CommitOfOtherContentFailsTheVersionAndServesTheOldOne) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  EXPECT_THAT(Step(sink::Commit{2, 7, Hash128{9, 9}}), ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_EQ(LastFailed()->status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(state_->serving().version, 6u);
}

TEST_F(SinkStateTest, CorruptedBucketFailsNamingBucketAndPhase) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(sink::Received{.status = absl::DataLossError("bad rows"), .bucket = 3}),
              ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_EQ(LastFailed()->bucket, 3);
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kReceive);
}

TEST_F(SinkStateTest, AnotherPlanIsRefusedNamingBothHashes) {
  MakeReady();
  sink::Begin begin = Begin(1, 7);
  begin.plan_hash = Hash128{5, 5};
  EXPECT_THAT(Step(begin), ElementsAre("failed 7"));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr(begin.plan_hash.Hex()));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr(kPlan.Hex()));
}

TEST_F(SinkStateTest, BeginWhileNotReadyFailsWithTheReason) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  EXPECT_THAT(Step(Begin(1, 7)), ElementsAre("failed 7"));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr("no engine attached"));
}

TEST_F(SinkStateTest, AbortMidReceiveCancelsAndKeepsTheOldVersion) {
  MakeReady();
  Serve(1, 6);
  Receive(2, 7);
  EXPECT_THAT(Step(sink::Abort{2, 7, absl::AbortedError("rollout-1 is gone")}), ElementsAre("cancel"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("rollout-1 is gone")}), ElementsAre("-> cancelled 7"));
  EXPECT_EQ(state_->serving().version, 6u);
  EXPECT_FALSE(state_->busy());
}

TEST_F(SinkStateTest, MessagesOfAnOldEpochChangeNothing) {
  MakeReady();
  Receive(5, 7);
  EXPECT_THAT(Step(Begin(4, 6)), IsEmpty());
  EXPECT_THAT(Step(sink::Abort{4, 6, absl::AbortedError("old")}), IsEmpty());
  EXPECT_THAT(Step(sink::Abort{4, 7, absl::AbortedError("old")}), IsEmpty());
  Step(sink::Received{.digest = kContent});
  EXPECT_THAT(Step(sink::Commit{4, 7, kContent}), IsEmpty());
  EXPECT_EQ(state_->phase(), MemberPhase::kStaged);
}

TEST_F(SinkStateTest, NewerEpochAbortsTheOlderAndStartsWhenItHasWoundDown) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(Begin(2, 8)), ElementsAre("cancel"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x")}),
              ElementsAre("-> cancelled 7", "-> prepare 8", "connect 8"));
}

TEST_F(SinkStateTest, AbortOfTheWaitingEpochDropsIt) {
  MakeReady();
  Receive(1, 7);
  Step(Begin(2, 8));
  EXPECT_THAT(Step(sink::Abort{2, 8, absl::AbortedError("x")}), IsEmpty());
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x")}), ElementsAre("-> cancelled 7"));
  EXPECT_FALSE(state_->busy());
}

TEST_F(SinkStateTest, EngineThatDoesNotPauseFailsTheVersionButKeepsServing) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  Commit(2, 7);
  now_ = state_->NextDeadline();
  EXPECT_THAT(Step(sink::Tick{}), ElementsAre("failed 7"));
  EXPECT_THAT(LastFailed()->status.message(), HasSubstr("vllm (pid 1) did not pause"));
  EXPECT_EQ(LastFailed()->phase, MemberPhase::kPause);
  EXPECT_EQ(state_->serving().version, 6u);
  // The late answer is let go of, not applied to.
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7"));
}

TEST_F(SinkStateTest, LateAnswerToAVoidRequestNeverCountsForALaterOneOfTheSameVersion) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::Abort{1, 7, absl::AbortedError("apply deadline")});
  Stage(2, 7);
  // The engine is still at the first request: there is no second one, so its one answer means one pause.
  EXPECT_THAT(Step(sink::Commit{2, 7, kContent}), IsEmpty());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
}

TEST_F(SinkStateTest, OpenRequestIsAnsweredBeforeAnotherVersionAsks) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::Abort{1, 7, absl::AbortedError("apply deadline")});
  Stage(2, 8);
  EXPECT_THAT(Step(sink::Commit{2, 8, kContent}), IsEmpty());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("-> cancelled 7", "-> apply 8"));
  EXPECT_THAT(Step(sink::EnginePaused{8}), ElementsAre("apply 8"));
}

TEST_F(SinkStateTest, PauseNobodyAskedForIsIgnored) {
  MakeReady();
  EXPECT_THAT(Step(sink::EnginePaused{7}), IsEmpty());
  Receive(1, 7);
  EXPECT_THAT(Step(sink::EnginePaused{7}), IsEmpty());
}

TEST_F(SinkStateTest, ApplyIsNotCancelledHalfWay) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Abort{1, 7, absl::AbortedError("too late")}), IsEmpty());
  // The round is over for the coordinator: it learns what is served from Ready.
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "ready serving 7"));
}

TEST_F(SinkStateTest, FailedApplyIsTornUntilACompleteVersion) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  Commit(2, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::ApplyDone{.status = absl::InternalError("copy failed")}),
              ElementsAre("failed torn 7", "-> torn 7"));
  EXPECT_TRUE(state_->torn());
  EXPECT_EQ(state_->serving().version, 0u);
  Serve(3, 8);
  EXPECT_FALSE(state_->torn());
}

TEST_F(SinkStateTest, ApplyThatWroteNothingIsCancelledAndTheOldVersionIsServedOn) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  Commit(2, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::ApplyDone{.status = absl::DeadlineExceededError("the engine's stream"), .wrote = false}),
              ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_FALSE(state_->torn());
  EXPECT_EQ(state_->serving().version, 6u);
}

TEST_F(SinkStateTest, InPlaceFailureBeforeTheFirstByteIsCancelled) {
  MakeReady(SinkMode::kInPlace);
  Receive(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x"), .wrote = false}),
              ElementsAre("failed 7", "-> cancelled 7"));
  EXPECT_FALSE(state_->torn());
}

TEST_F(SinkStateTest, InPlaceFailureAfterTheFirstByteIsTornAndACompleteVersionEndsIt) {
  MakeReady(SinkMode::kInPlace);
  Receive(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x"), .wrote = true}),
              ElementsAre("failed torn 7", "-> torn 7"));
  // A failure that touches nothing must not tell a torn engine to resume.
  Step(Begin(2, 8));
  EXPECT_THAT(Step(sink::Connected{absl::UnavailableError("y")}), ElementsAre("failed 8"));
  EXPECT_THAT(Step(sink::EnginePaused{8}), ElementsAre("-> torn 8"));

  Step(Begin(3, 9));
  Step(sink::EnginePaused{9});
  Step(sink::Connected{});
  Step(sink::Received{.digest = kContent, .wrote = true});
  EXPECT_THAT(Step(sink::Commit{3, 9, kContent}), ElementsAre("-> applied 9", "applied 9"));
  EXPECT_FALSE(state_->torn());
}

TEST_F(SinkStateTest, InPlaceAbortAfterStagingIsTornBecauseUncommittedBytesAreLive) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::EnginePaused{7});
  Step(sink::Connected{});
  Step(sink::Received{.digest = kContent, .wrote = true});
  EXPECT_THAT(Step(sink::Abort{1, 7, absl::AbortedError("x")}),
              ElementsAre("cancel", "-> torn 7", "ready torn serving 0"));
}

TEST_F(SinkStateTest, InPlaceAbortMidReceiveTellsTheEngineWhatTheReceiverFound) {
  MakeReady(SinkMode::kInPlace);
  Step(Begin(1, 7));
  Step(sink::EnginePaused{7});
  Step(sink::Connected{});
  EXPECT_THAT(Step(sink::Abort{1, 7, absl::AbortedError("x")}), ElementsAre("cancel"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x"), .wrote = true}),
              ElementsAre("-> torn 7", "ready torn serving 0"));
}

TEST_F(SinkStateTest, RestartedEngineTakesTheStagedVersionAtOnceAndThenIsReady) {
  MakeReady();
  Serve(1, 7);
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("not ready serving 0"));
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("-> apply 7", "not ready serving 0"));
  EXPECT_THAT(NotReadyReason(), HasSubstr("applying version 7"));
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "ready serving 7"));
}

TEST_F(SinkStateTest, RestartedEngineGetsNoCopyThatANewVersionBeganToOverwrite) {
  MakeReady();
  Serve(1, 7);
  Receive(2, 8);
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("failed 8", "cancel", "not ready serving 0"));
  Step(sink::Received{.status = absl::UnavailableError("x")});
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("ready serving 0"));
}

TEST_F(SinkStateTest, RestartedEngineGetsNoCopyOfAnotherPlan) {
  MakeReady();
  Serve(1, 7);
  Step(sink::CatalogChanging{});
  Step(sink::PlanReady{absl::OkStatus(), Hash128{4, 4}, /*changed=*/true});
  Step(sink::EngineLost{"it died"});
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("ready serving 0"));
}

TEST_F(SinkStateTest, WhatBecameOfTheLastEngineIsToldUntilThereIsAnother) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  EXPECT_EQ(NotReadyReason(), "no engine attached");
  Attach();
  Step(sink::EngineLost{"the catalog changed"});
  EXPECT_EQ(NotReadyReason(), "no engine attached: engine vllm (pid 1) is gone: the catalog changed");
  Step(sink::CatalogGone{});
  EXPECT_EQ(NotReadyReason(), "no catalog yet; no engine attached: engine vllm (pid 1) is gone: the catalog changed");
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  Step(sink::EngineRefused{"vllm (pid 2)", "no destination for 'a.weight'"});
  EXPECT_EQ(NotReadyReason(), "no engine attached: engine vllm (pid 2) was refused: no destination for 'a.weight'");
  Attach();
  EXPECT_EQ(NotReadyReason(), "");
  Step(sink::CatalogGone{});
  EXPECT_EQ(NotReadyReason(), "no catalog yet");
}

TEST_F(SinkStateTest, EngineLostWhileApplyingIsTornForTheRoundAndFreshAfterwards) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::EngineLost{"it died"}), ElementsAre("failed torn 7", "not ready serving 0"));
  EXPECT_THAT(Step(sink::ApplyDone{}), IsEmpty());
  // The copy was committed and is whole.
  Step(sink::EngineAttached{"vllm (pid 2)"});
  EXPECT_THAT(Step(sink::EngineOpened{}), ElementsAre("-> apply 7", "not ready serving 0"));
}

TEST_F(SinkStateTest, EngineThatNeverOpensItsStreamIsDetached) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::PlanReady{absl::OkStatus(), kPlan});
  Step(sink::EngineAttached{"vllm (pid 1)"});
  EXPECT_EQ(state_->NextDeadline(), now_ + absl::Seconds(10));
  now_ = state_->NextDeadline();
  EXPECT_THAT(Step(sink::Tick{}), ElementsAre("detach", "not ready serving 0"));
  EXPECT_THAT(std::get<sink::Detach>(last_.front()).why.message(), HasSubstr("did not open Updates within 10s"));
}

TEST_F(SinkStateTest, LostCoordinatorEndsWhatWasNotCommitted) {
  MakeReady();
  Serve(1, 6);
  Stage(2, 7);
  EXPECT_THAT(Step(sink::Unlinked{"silence"}), ElementsAre("cancel", "-> cancelled 7"));
  EXPECT_EQ(state_->serving().version, 6u);
}

TEST_F(SinkStateTest, CommittedVersionIsAppliedThoughTheCoordinatorIsGone) {
  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  EXPECT_THAT(Step(sink::Unlinked{"silence"}), IsEmpty());
  EXPECT_THAT(Step(sink::EnginePaused{7}), ElementsAre("apply 7"));
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7"));
  EXPECT_EQ(state_->serving().version, 7u);
}

TEST_F(SinkStateTest, RestartedCoordinatorMayCountEpochsFromOneAgain) {
  MakeReady();
  Serve(9, 7);
  Step(sink::Unlinked{"restart"});
  Step(sink::Linked{});
  EXPECT_EQ(state_->not_ready(), "no catalog yet");
  Step(sink::CatalogChanging{});
  EXPECT_THAT(Step(sink::PlanReady{absl::OkStatus(), kPlan, /*changed=*/false}), ElementsAre("ready serving 7"));
  EXPECT_THAT(Step(Begin(1, 8)), ElementsAre("-> prepare 8", "connect 8"));
}

TEST_F(SinkStateTest, PlanThatCannotBeMadeIsTheReason) {
  Use(SinkMode::kStaged);
  Step(sink::Linked{});
  Step(sink::CatalogChanging{});
  EXPECT_THAT(Step(sink::PlanReady{absl::ResourceExhaustedError("8 GiB for the staging copy"), kPlan}),
              ElementsAre("not ready serving 0"));
  EXPECT_EQ(NotReadyReason(), "8 GiB for the staging copy");
}

TEST_F(SinkStateTest, CatalogChangeEndsTheRoundQuietly) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(sink::CatalogChanging{}), ElementsAre("cancel", "not ready serving 0"));
  EXPECT_THAT(Step(sink::Received{.status = absl::AbortedError("x")}), ElementsAre("-> cancelled 7"));
}

TEST_F(SinkStateTest, StopGivesUpATransferAndFinishesAnApply) {
  MakeReady();
  Receive(1, 7);
  EXPECT_THAT(Step(sink::Stop{}), ElementsAre("cancel", "not ready serving 0"));
  EXPECT_THAT(Step(sink::Received{.status = absl::UnavailableError("x")}), ElementsAre("-> cancelled 7"));

  MakeReady();
  Stage(1, 7);
  Commit(1, 7);
  Step(sink::EnginePaused{7});
  EXPECT_THAT(Step(sink::Stop{}), ElementsAre("not ready serving 0"));
  EXPECT_TRUE(state_->busy());
  EXPECT_THAT(Step(sink::ApplyDone{}), ElementsAre("-> applied 7", "applied 7"));
  EXPECT_FALSE(state_->busy());
}

}  // namespace
}  // namespace wsync
