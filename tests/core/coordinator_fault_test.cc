// The coordinator's rules when something goes wrong, and how replicas that were left out catch up.
#include <string>
#include <vector>

#include "tests/core/coordinator_testing.h"

namespace wsync {
namespace {

using CoordinatorFaultTest = CoordinatorTest;

// ---- faults of a round

TEST_F(CoordinatorFaultTest, ALossBeforeReleaseGoesOnEncodingForTheSurvivorsInANewEpoch) {
  Sinks(2);
  Publish(1);
  const uint64_t former = epoch_;
  Step(event::Lost{2, "connection reset"});
  EXPECT_THAT(To<action::SendAbort>(), ElementsAre(1));
  ASSERT_THAT(All<action::CancelSource>(), SizeIs(1));
  EXPECT_EQ(All<action::CancelSource>()[0].epoch, former);
  EXPECT_FALSE(All<action::CancelSource>()[0].drop_version);
  ASSERT_THAT(All<action::StartSource>(), SizeIs(1));
  EXPECT_TRUE(All<action::StartSource>()[0].encode);
  EXPECT_GT(epoch_, former);
  EXPECT_EQ(All<action::StartSource>()[0].session, "session-2");
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, ALossAfterReleaseSendsTheRetainedCopyAndTheReportTellsWhoIsOut) {
  Sinks(2);
  Publish(1);
  Release(1);
  Step(event::Lost{2, "connection reset"});
  ASSERT_THAT(All<action::StartSource>(), SizeIs(1));
  EXPECT_FALSE(All<action::StartSource>()[0].encode);
  Staged(1, 1);
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1));
  Applied(1, 1);
  EXPECT_TRUE(Answer().ok());
  const auto replicas = All<action::PublishDone>()[0].report.replicas;
  ASSERT_THAT(replicas, SizeIs(2));
  EXPECT_EQ(replicas[1].replica, "r2");
  EXPECT_EQ(replicas[1].result, ReplicaResult::kLeftOut);
  EXPECT_THAT(replicas[1].reason, HasSubstr("connection reset"));
}

TEST_F(CoordinatorFaultTest, ASourceThatDoesNotRetainCannotSendAgain) {
  options_.source_retains = false;
  Sinks(2);
  Publish(1);
  Release(1);
  Step(event::Lost{2, "connection reset"});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(Answer()), HasSubstr("does not retain"));
}

TEST_F(CoordinatorFaultTest, AVersionWhoseCallersAreGoneBeforeItIsReleasedIsCalledOff) {
  Sinks(1);
  Publish(1);
  EXPECT_THAT(Step(event::CallersGone{2}), IsEmpty());  // of another version
  Step(event::CallersGone{1});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(To<action::SendAbort>(), ElementsAre(1));
  ASSERT_THAT(All<action::CancelSource>(), SizeIs(1));
  EXPECT_TRUE(All<action::CancelSource>()[0].drop_version);
  EXPECT_THAT(Release(1), IsEmpty()) << "what was read may be a mixture";
  Publish(1);
  Release(1);
  EXPECT_THAT(Step(event::CallersGone{1}), IsEmpty()) << "nobody needs to wait for a released one";
  Staged(1, 1);
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, AVersionThatWasNotReleasedWhenTheProcessStoodStillIsCalledOff) {
  Sinks(1);
  Publish(1);
  Pass(absl::Seconds(1), {1});
  EXPECT_EQ(coordinator_->NextDeadline(), now_ + absl::Milliseconds(250)) << "standing still is noticed by ticks";
  now_ += absl::Seconds(3);
  Release(1);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(Text(Answer()), HasSubstr("stood still for 3.00 s before the weights were released"));
  Pass(absl::Milliseconds(500));
  Publish(1);
  Release(1);
  now_ += absl::Seconds(3);
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  Staged(1, 1);
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1)) << "a released one goes on";
}

// Else it goes to whoever was back first, and in ring mode nobody else gets it.
TEST_F(CoordinatorFaultTest, ReplicasThatLeftWhileTheProcessStoodStillAreWaitedForAMoment) {
  options_.source_retains = false;
  Sinks(2);
  Commit(1, {1, 2});
  alive_.clear();
  now_ += absl::Seconds(4);
  Publish(2);  // the first that is read
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Step(event::Lost{1, "its connection broke"});
  Step(event::Lost{2, "its connection broke"});
  Join(3, "sink-1", "r1", 0, 1, 1);
  Ready(3, 1);
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Pass(absl::Milliseconds(300));
  Join(4, "sink-2", "r2", 0, 1, 1);
  Ready(4, 1);
  Pass(absl::Milliseconds(200));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(3, 4));
}

// The same, where the former coordinator died: its sinks say how many they were.
TEST_F(CoordinatorFaultTest, ACoordinatorThatWasStartedAgainWaitsForTheFormerGroup) {
  options_.source_retains = false;
  options_.min_replicas_wait = absl::Milliseconds(100);  // shorter than that takes nothing from it
  Register();
  const auto join = [this](MemberId member, int32_t group) {
    MemberInfo info{.name = absl::StrCat("sink-", member), .replica = absl::StrCat("r", member)};
    info.serving = Content(6);
    info.group = group;
    Step(event::Joined{member, info});
    Ready(member, 6);
  };
  join(1, 2);
  Publish(7);
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Pass(absl::Milliseconds(500));
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  join(2, 2);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1, 2));
}

// Whose sinks can be ready no sooner.
TEST_F(CoordinatorFaultTest, AFormerGroupIsWaitedForFromTheFirstCatalogOn) {
  Pass(absl::Seconds(20));
  Register();
  MemberInfo info{.name = "sink-1", .replica = "r1"};
  info.serving = Content(6);
  info.group = 2;
  Step(event::Joined{1, info});
  Ready(1, 6);
  Publish(7);
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Pass(absl::Milliseconds(2500));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, ASinkHearsHowManyAreReadyEvenWhenItCatchesUpAlone) {
  Sinks(2);
  Commit(1, {1, 2});
  Join(3, "sink-3", "r3");
  Ready(3);
  ASSERT_THAT(All<action::SendBegin>(), SizeIs(1));
  EXPECT_EQ(All<action::SendBegin>()[0].member, 3u);
  EXPECT_EQ(All<action::SendBegin>()[0].group, 3);
}

TEST_F(CoordinatorFaultTest, WhoWasLeftOutAndIsTornIsToldAsTorn) {
  options_.quorum = 1;
  Sinks(2);
  Publish(1);
  Release(1);
  Staged(1, 1);
  Pass(absl::Seconds(9));  // the other does not stage in time, and is called off over its live weights
  Step(event::ReadyChanged{2, true, "", kPlan, "engine", {}, true});
  Applied(1, 1);
  ASSERT_THAT(All<action::PublishDone>(), SizeIs(1));
  const VersionReport& report = All<action::PublishDone>()[0].report;
  ASSERT_THAT(report.replicas, SizeIs(2));
  EXPECT_EQ(report.replicas[1].result, ReplicaResult::kTorn) << report.replicas[1].reason;
}

TEST_F(CoordinatorFaultTest, AFormerGroupThatIsNotBackIsWaitedForInVainButOnce) {
  Register();
  MemberInfo info{.name = "sink-1", .replica = "r1"};
  info.serving = Content(6);
  info.group = 3;
  Step(event::Joined{1, info});
  Ready(1, 6);
  Publish(7);
  Pass(absl::Milliseconds(2400));
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Pass(absl::Milliseconds(100));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
  Release(7);
  Staged(1, 7);
  Applied(1, 7);
  Publish(8);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

// Its silence is not ours, however seldom hearts beat.
TEST_F(CoordinatorFaultTest, AMemberThatFallsSilentHoldsUpNoPublish) {
  Sinks(1);
  Commit(1, {1});
  Pass(absl::Seconds(2), {1});
  Publish(2);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, APublishThatIsReadAfterTheProcessStoodStillIsNotCalledOff) {
  Sinks(1);
  now_ += absl::Seconds(4);
  Publish(1);
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
}

TEST_F(CoordinatorFaultTest, APublishAfterAnIdleNightWaitsForNobody) {
  Register();
  now_ += absl::Hours(8);
  Join(1, "sink-1", "r1");
  Ready(1);
  Publish(1);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, AReplicaThatIsNotReadyForAnotherAttemptIsNamedInTheReport) {
  Sinks(2);
  Publish(1);
  Release(1);
  Step(event::Failed{1, epoch_, 1, MemberPhase::kReceive, absl::UnavailableError("engine e is gone"), true, -1});
  Step(event::ReadyChanged{1, false, "no engine attached", kPlan, "", Content(0), false});
  Pass(absl::Milliseconds(600));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(2));
  Staged(2, 1);
  Applied(2, 1);
  ASSERT_TRUE(Answer().ok());
  const std::vector<ReplicaOutcome> replicas = All<action::PublishDone>()[0].report.replicas;
  ASSERT_THAT(replicas, SizeIs(2));
  EXPECT_EQ(replicas[0].replica, "r1");
  EXPECT_EQ(replicas[0].result, ReplicaResult::kLeftOut);
  EXPECT_THAT(replicas[0].reason, HasSubstr("sent again: sink-1: no engine attached"));
  EXPECT_EQ(replicas[1].result, ReplicaResult::kApplied);
}

// It failed the version for everybody once it had taken longer than half of what a stage may.
TEST_F(CoordinatorFaultTest, AnEngineThatIsLostLateInATransferCostsItsReplicaOnly) {
  Sinks(2);
  Publish(1);
  Release(1);
  Staged(2, 1);
  beat_epoch_ = epoch_;
  Pass(0.75 * options_.stage_timeout);
  Step(event::Failed{1, epoch_, 1, MemberPhase::kReceive, absl::UnavailableError("engine e is gone"), true, -1});
  Step(event::ReadyChanged{1, false, "no engine attached", kPlan, "", Content(0), false});
  Pass(absl::Milliseconds(600));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(2));
  Staged(2, 1);
  Applied(2, 1);
  EXPECT_TRUE(Answer().ok());
}

TEST_F(CoordinatorFaultTest, MessagesOfAFormerEpochChangeNothing) {
  Sinks(2);
  Publish(1);
  Release(1);
  const uint64_t former = epoch_;
  Step(event::Lost{2, "connection reset"});
  EXPECT_THAT(Step(event::Staged{1, former, 1, DigestOf(1), {}}), IsEmpty());
  EXPECT_THAT(Step(event::Failed{1, former, 1, MemberPhase::kReceive, absl::InternalError("x"), false, -1}), IsEmpty());
  EXPECT_THAT(Step(event::Applied{1, former, 1, DigestOf(1), {}}), IsEmpty());
  EXPECT_THAT(Step(event::Staged{2, epoch_, 1, DigestOf(1), {}}), IsEmpty());  // a zombie
  Step(event::Failed{1, former, 1, MemberPhase::kReceive, absl::InternalError("x"), true, -1});
  EXPECT_EQ(Snapshot().members[0].last_error, "x");
  EXPECT_THAT(To<action::SendCommit>(), IsEmpty());
  Staged(1, 1);
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1));
  EXPECT_THAT(Step(event::Applied{1, former, 1, DigestOf(1), {}}), IsEmpty());
  EXPECT_EQ(Snapshot().members[0].serving.version, 0u);
}

TEST_F(CoordinatorFaultTest, OnlyThatASinkIsTornIsBelievedFromAnyEpoch) {
  options_.source_retains = false;
  Sinks(1);
  Commit(1, {1});
  Step(event::Failed{1, epoch_ - 1, 1, MemberPhase::kReceive, absl::AbortedError("x"), true, -1});
  EXPECT_EQ(Snapshot().members[0].state, "torn");
  EXPECT_EQ(Snapshot().members[0].serving.version, 0u);  // it was said to serve what it had before
  EXPECT_EQ(Snapshot().state, SyncState::kDegraded);
  Commit(2, {1});
  EXPECT_EQ(Snapshot().members[0].state, "ready");
}

TEST_F(CoordinatorFaultTest, MembersThatFallSilentTogetherAreNotCountedForADecision) {
  options_.min_replicas = 2;
  Sinks(3);
  Publish(1);
  Release(1);
  Staged(1, 1);
  Staged(3, 1);
  Pass(options_.heartbeat_timeout, {2, 3});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(2, 3));
  EXPECT_THAT(To<action::SendCommit>(), IsEmpty());
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
}

TEST_F(CoordinatorFaultTest, ASilentMemberIsLostAfterTheTimeoutAndThePublishIsUnblocked) {
  Sinks(2);
  Publish(1);
  Release(1);
  Staged(1, 1);
  Pass(options_.heartbeat_timeout - absl::Milliseconds(100), {2});
  EXPECT_THAT(To<action::Disconnect>(), IsEmpty());
  Pass(absl::Milliseconds(100), {2});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(2));
  EXPECT_THAT(All<action::Disconnect>()[0].reason, HasSubstr("no heartbeat for 3.0 s"));
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, TheCoordinatorsOwnPauseIsNotTheMembersSilence) {
  Sinks(2);
  now_ += absl::Seconds(60);
  EXPECT_THAT(Step(event::Tick{}), IsEmpty());
  Step(event::HeartbeatSeen{1});
  now_ += absl::Seconds(60);
  Step(event::Tick{});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(2));  // forgiven once, not for ever
}

// A sink without descriptors took three connect timeouts of 5 s to fail a version.
TEST_F(CoordinatorFaultTest, AnAttemptThatBreaksAfterALongWaitIsNotRepeated) {
  Sinks(2);
  Publish(1);
  Release(1);
  Pass(absl::Seconds(6));
  Step(event::Failed{2, epoch_, 1, MemberPhase::kConnect, absl::DeadlineExceededError("cannot connect"), false, -1});
  Pass(absl::Milliseconds(600));
  EXPECT_THAT(All<action::StartSource>(), IsEmpty());
  EXPECT_EQ(Answer().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(Text(Answer()), AllOf(HasSubstr("sink-2"), HasSubstr("phase connect"), HasSubstr("cannot connect")));
}

TEST_F(CoordinatorFaultTest, UnderAQuorumWhoBreaksAfterALongWaitIsLeftOutTheSecondTime) {
  options_.quorum = 1;
  Sinks(2);
  Publish(1);
  Release(1);
  const event::Failed failed{2,     epoch_, 1, MemberPhase::kConnect, absl::DeadlineExceededError("cannot connect"),
                             false, -1};
  Pass(absl::Seconds(6));
  Step(failed);
  Pass(absl::Milliseconds(600));
  ASSERT_THAT(All<action::StartSource>(), SizeIs(1));
  Step(event::Failed{2, epoch_, 1, failed.phase, failed.status, false, -1});
  Staged(1, 1);
  Pass(absl::Milliseconds(600));
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, ABrokenSessionIsTriedThreeTimesAndNotMore) {
  Sinks(1);
  Publish(1);
  Release(1);
  int attempts = 1;
  for (; attempts < 10; ++attempts) {
    Step(event::SourceFailed{epoch_, 1, absl::UnavailableError("connection reset"), false});
    now_ += absl::Milliseconds(500);
    Step(event::Tick{});
    if (All<action::StartSource>().empty()) break;
  }
  EXPECT_EQ(attempts, 3);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(All<action::CancelSource>(), SizeIs(1));
  EXPECT_TRUE(All<action::CancelSource>()[0].drop_version);
}

TEST_F(CoordinatorFaultTest, AVersionLostWhileEncodingFailsEvenIfAnEarlierEpochFoundItOut) {
  Sinks(2);
  Publish(1);
  const uint64_t former = epoch_;
  Step(event::Lost{2, "connection reset"});
  Step(event::SourceFailed{former, 1, absl::DataLossError("NaN in model.x at 17"), true});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Text(Answer()), HasSubstr("NaN in model.x at 17"));
  EXPECT_EQ(Snapshot().committed.version, 0u);
}

TEST_F(CoordinatorFaultTest, AReleaseOfAnAbortedPublishIsNotTakenForTheNextOne) {
  Sinks(1);
  Publish(1);
  const uint64_t former = epoch_;
  Step(event::Failed{1, epoch_, 1, MemberPhase::kReceive, absl::InternalError("x"), false, -1});
  Publish(1);
  EXPECT_THAT(Step(event::SourceReleased{1, DigestOf(9), absl::ZeroDuration(), former}), IsEmpty());
  Release(1);
  EXPECT_THAT(All<action::PublishReleased>(), SizeIs(1));
}

TEST_F(CoordinatorFaultTest, AQuorumCommitsWithoutTheLaggardWhichIsFenced) {
  options_.quorum = 1;
  Sinks(2);
  Publish(1);
  Release(1);
  Staged(1, 1);
  beat_epoch_ = epoch_;
  Pass(options_.stage_timeout + absl::Seconds(1));
  EXPECT_THAT(To<action::SendAbort>(), ElementsAre(2));
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1));
  EXPECT_THAT(All<action::CancelSource>(), SizeIs(1));  // it must not go on feeding the laggard
  EXPECT_THAT(Step(event::Staged{2, epoch_, 1, DigestOf(1), {}}), IsEmpty());
}

TEST_F(CoordinatorFaultTest, TheCatalogsEndAbortsAVersionThatIsNotReleasedAndNoOther) {
  Sinks(1);
  Publish(1);
  Step(event::CatalogGone{"trainer exited"});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(To<action::SendCatalog>(), ElementsAre(1));
  Register();
  Ready(1);
  Publish(1);
  Release(1);
  Step(event::CatalogGone{"trainer exited"});
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  EXPECT_THAT(To<action::SendCatalog>(), IsEmpty());  // it needs its plan until it is out of the round
  Staged(1, 1);
  Applied(1, 1);
  EXPECT_THAT(To<action::SendCatalog>(), ElementsAre(1));
  EXPECT_TRUE(Answer().ok());
}

TEST_F(CoordinatorFaultTest, ASinkThatStillAppliesIsNotAskedAgainUntilItAnswers) {
  options_.min_replicas = 0;
  Sinks(1);
  Publish(1);
  Release(1);
  Staged(1, 1);
  const uint64_t former = beat_epoch_ = epoch_;
  now_ += options_.apply_timeout;
  Step(event::Tick{});  // forgiven its silence: our own pause
  EXPECT_TRUE(Answer().ok());
  EXPECT_EQ(All<action::PublishDone>()[0].report.replicas[0].result, ReplicaResult::kLeftOut);
  Publish(2);
  now_ += absl::Milliseconds(500);
  Step(event::Tick{});
  EXPECT_THAT(All<action::StartSource>(), SizeIs(1));
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Release(2);
  Step(event::Applied{1, former, 1, DigestOf(1), {}});
  EXPECT_EQ(Snapshot().members[0].serving, Content(1));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));  // now it catches up
}

// ---- catch-up

TEST_F(CoordinatorFaultTest, ALateJoinerCatchesUpFromTheRetainedCopyWithoutTheOthers) {
  Sinks(1);
  Commit(1, {1});
  Join(2, "b", "r2");
  Ready(2);
  ASSERT_THAT(All<action::StartSource>(), SizeIs(1));
  EXPECT_FALSE(All<action::StartSource>()[0].encode);
  EXPECT_EQ(All<action::StartSource>()[0].version, 1u);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(2));
  EXPECT_TRUE(Snapshot().round->catch_up);
  Staged(2, 1);
  EXPECT_THAT(To<action::SendCommit>(), ElementsAre(2));
  Applied(2, 1);
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  EXPECT_EQ(Snapshot().state, SyncState::kInSync);
  EXPECT_THAT(Snapshot().last_report->replicas, SizeIs(2));
}

TEST_F(CoordinatorFaultTest, ATornReplicaCatchesUpEvenIfItHadTheVersion) {
  Sinks(1);
  Commit(1, {1});
  Step(event::ReadyChanged{1, true, "", kPlan, "engine", Content(1), true});
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, APublishCancelsACatchUpAndTakesItsMembersIn) {
  Sinks(1);
  Commit(1, {1});
  Join(2, "b", "r2");
  Ready(2);
  const uint64_t catch_up = epoch_;
  Publish(2);
  EXPECT_THAT(To<action::SendAbort>(), ElementsAre(2));
  EXPECT_EQ(All<action::CancelSource>()[0].epoch, catch_up);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1, 2));
}

TEST_F(CoordinatorFaultTest, APublishWaitsForACatchUpThatIsJustBeingAppliedButNotLong) {
  Sinks(1);
  Commit(1, {1});
  Join(2, "b", "r2");
  Ready(2);
  Staged(2, 1);
  beat_epoch_ = epoch_;
  Publish(2);
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Pass(absl::Milliseconds(900));
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Pass(absl::Milliseconds(100));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorFaultTest, AFailedCatchUpIsRepeatedLaterAndLaterAndHoldsUpNobodyElse) {
  Sinks(1);
  Commit(1, {1});
  Join(2, "b", "r2");
  Ready(2);
  for (const int seconds : {1, 2, 4}) {
    Step(event::Failed{2, epoch_, 1, MemberPhase::kReceive, absl::ResourceExhaustedError("no memory"), false, -1});
    EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
    EXPECT_LE(coordinator_->NextDeadline(), now_ + absl::Seconds(seconds));
    Pass(absl::Seconds(seconds) - absl::Milliseconds(100));
    EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
    Pass(absl::Milliseconds(100));
    EXPECT_THAT(To<action::SendBegin>(), ElementsAre(2));
  }
  EXPECT_THAT(Snapshot().members[1].last_error, HasSubstr("no memory"));
}

TEST_F(CoordinatorFaultTest, NothingIsCaughtUpOnceTheRetainedCopyWasOverwritten) {
  Sinks(1);
  Commit(1, {1});
  Publish(2);
  Step(event::SourceFailed{epoch_, 2, absl::DataLossError("NaN"), true});
  Join(2, "b", "r2");
  Ready(2);
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  EXPECT_EQ(Snapshot().state, SyncState::kDegraded);
  EXPECT_THAT(Snapshot().reason, HasSubstr("b (replica r2) serves no version, committed is 1"));
}

}  // namespace
}  // namespace wsync
