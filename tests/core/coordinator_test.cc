// The coordinator's rules of joining, publishing and status, one by one, by what it asks for.
#include <map>
#include <string>
#include <vector>

#include "server/core/group.h"
#include "tests/core/coordinator_testing.h"

namespace wsync {
namespace {

// ---- joining

TEST_F(CoordinatorTest, ANewcomerIsWelcomedAndGetsTheCatalogIfThereIsOne) {
  Join(1, "a", "r1");
  EXPECT_THAT(To<action::SendWelcome>(), ElementsAre(1));
  EXPECT_THAT(To<action::SendCatalog>(), IsEmpty());
  Register();
  EXPECT_THAT(To<action::SendCatalog>(), ElementsAre(1));
  Join(2, "b", "r2");
  EXPECT_THAT(To<action::SendCatalog>(), ElementsAre(2));
}

TEST_F(CoordinatorTest, ALiveNameOrPlaceIsNotGivenToAnotherAndTheOtherIsNamed) {
  Join(1, "a", "r1");
  Join(2, "a", "r2");
  ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
  EXPECT_EQ(All<action::Refuse>()[0].status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(All<action::Refuse>()[0].retry);
  Join(3, "b", "r1");
  ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
  EXPECT_THAT(Text(All<action::Refuse>()[0].status), HasSubstr("a (replica r1, rank 0) on host, pid 1"));
}

TEST_F(CoordinatorTest, AReconnectReplacesItsFormerConnection) {
  MemberInfo info{"a", "r1", 0, 1, "host", 1, "host", "test"};
  info.incarnation = {7, 7};
  Step(event::Joined{1, info});
  Step(event::Joined{2, info});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(1));
  EXPECT_THAT(To<action::SendWelcome>(), ElementsAre(2));
  EXPECT_THAT(Snapshot().members, SizeIs(1));
}

// Everybody reads name, host and pid in the status, and evicted the live member by them.
TEST_F(CoordinatorTest, WhoKnowsNameHostAndPidDoesNotEvictALiveMember) {
  MemberInfo info{"a", "r1", 0, 1, "host", 1, "host", "test"};
  info.incarnation = {7, 7};
  Step(event::Joined{1, info});
  for (const Hash128 guess : {Hash128{}, Hash128{7, 8}}) {
    info.incarnation = guess;
    Step(event::Joined{2, info});
    EXPECT_THAT(To<action::Disconnect>(), IsEmpty());
    ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
    EXPECT_TRUE(All<action::Refuse>()[0].retry);
  }
}

TEST_F(CoordinatorTest, AMemberWithoutAnIncarnationIsNotEvictedWhileItLives) {
  const MemberInfo info{"a", "r1", 0, 1, "host", 1, "host", "test"};
  Step(event::Joined{1, info});
  Step(event::Joined{2, info});
  EXPECT_THAT(All<action::Refuse>(), SizeIs(1));
  Pass(absl::Milliseconds(1600), {1});
  Step(event::Joined{3, info});
  EXPECT_THAT(To<action::SendWelcome>(), ElementsAre(3)) << "an older release has none, and comes back all the same";
}

TEST_F(CoordinatorTest, OneAddressCannotFillTheTableOfMembers) {
  const auto join = [this](MemberId id, const std::string& peer) {
    MemberInfo info{absl::StrCat("m", id), absl::StrCat("r", id), 0, 1, "host", 1, "host", "test"};
    info.peer = peer;
    Step(event::Joined{id, info});
    return All<action::Refuse>();
  };
  MemberId id = 0;
  while (id < Group::kMaxMembersOfPeer) ASSERT_THAT(join(++id, "ipv4:10.0.0.1"), IsEmpty());
  ASSERT_THAT(join(++id, "ipv4:10.0.0.1"), SizeIs(1));
  EXPECT_EQ(All<action::Refuse>()[0].status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Text(All<action::Refuse>()[0].status), HasSubstr("from ipv4:10.0.0.1"));
  EXPECT_THAT(join(++id, "ipv4:10.0.0.2"), IsEmpty());
}

TEST_F(CoordinatorTest, MembersAreBounded) {
  MemberId id = 0;
  while (id < Group::kMaxMembers) {
    ++id;
    Join(id, absl::StrCat("m", id), absl::StrCat("r", id));
  }
  EXPECT_THAT(All<action::Refuse>(), IsEmpty());
  Join(++id, "more", "more");
  ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
  EXPECT_TRUE(All<action::Refuse>()[0].retry);
}

TEST_F(CoordinatorTest, ANewProcessReplacesOneThatWasSilentForHalfTheTimeout) {
  Join(1, "a", "r1");
  Pass(absl::Milliseconds(1600), {1});
  Join(2, "a", "r1");
  EXPECT_THAT(To<action::SendWelcome>(), ElementsAre(2));
}

TEST_F(CoordinatorTest, RanksThatDoNotFitTheReplicaAreRefused) {
  Join(1, "a", "r1", 2, 2);
  ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
  EXPECT_EQ(All<action::Refuse>()[0].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(All<action::Refuse>()[0].retry);
  Join(2, "b", "r2", 0, 2);
  Join(3, "c", "r2", 1, 3);
  ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
  EXPECT_EQ(All<action::Refuse>()[0].status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CoordinatorTest, AnotherPlanIsNotReadyAndTheReasonSaysWhatMustAgree) {
  options_.min_replicas_wait = absl::ZeroDuration();
  Register();
  Join(1, "a", "r1");
  Ready(1, 0, kOtherPlan);
  EXPECT_EQ(Snapshot().members[0].state, "waiting");
  EXPECT_THAT(Snapshot().members[0].last_error, HasSubstr("is not the trainer's"));
  Publish(1);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(Answer()), HasSubstr("recipe rules, bucket size and software version"));
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
}

TEST_F(CoordinatorTest, AReplicaTakesPartOnlyWithAllItsRanks) {
  options_.min_replicas = 1;
  Register();
  Join(1, "a0", "a", 0, 2);
  Ready(1);
  Join(3, "b0", "b");
  Ready(3);
  Publish(1);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(3));
}

// ---- publishing

TEST_F(CoordinatorTest, APublishBeginsWithAllReadySinksInOrderOfReplicaAndRank) {
  Register();
  Join(1, "b1", "b", 1, 2);
  Join(2, "a0", "a", 0, 1);
  Join(3, "b0", "b", 0, 2);
  for (const MemberId member : {1, 2, 3}) Ready(member);
  Publish(1);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(2, 3, 1));
  const auto begins = All<action::SendBegin>();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(begins[i].rank, i + 1);
    EXPECT_EQ(begins[i].world, 4);
    EXPECT_EQ(begins[i].session, "session-1");
  }
  ASSERT_THAT(All<action::StartSource>(), SizeIs(1));
  EXPECT_TRUE(All<action::StartSource>()[0].encode);
  ASSERT_THAT(All<action::PublishAccepted>(), SizeIs(1));
  EXPECT_EQ(All<action::PublishAccepted>()[0].replicas, 2);
}

TEST_F(CoordinatorTest, ASessionIsWideWhereThatDisturbsNoneOfItsSinks) {
  Sinks(1);
  MemberInfo info{"wide", "w", 0, 1, "host", 7, "cuda", "test"};
  info.wide = true;
  Step(event::Joined{2, info});
  Ready(2);
  const auto told = [&](bool wide) {
    for (const auto& start : All<action::StartSource>()) EXPECT_EQ(start.wide, wide);
    for (const auto& begin : All<action::SendBegin>()) EXPECT_EQ(begin.wide, wide);
    return All<action::SendBegin>().size();
  };
  Publish(1);
  EXPECT_EQ(told(false), 2u);
  Step(event::Lost{1, "gone"});
  EXPECT_EQ(told(true), 1u);
}

TEST_F(CoordinatorTest, TwoMembersOnOneGpuAreRefused) {
  Register();
  MemberInfo info{"a", "ra", 0, 1, "host", 7, "cuda", "test", {}, "GPU-1"};
  Step(event::Joined{1, info});
  EXPECT_THAT(All<action::Refuse>(), IsEmpty());
  info.name = "b", info.replica = "rb", info.pid = 8;
  Step(event::Joined{2, info});
  ASSERT_THAT(All<action::Refuse>(), SizeIs(1));
  EXPECT_THAT(Text(All<action::Refuse>()[0].status), HasSubstr("same GPU GPU-1"));
  info.device_id = "GPU-2";
  Step(event::Joined{3, info});
  EXPECT_THAT(All<action::Refuse>(), IsEmpty());
}

TEST_F(CoordinatorTest, TheNextVersionOfTheSameMembersGoesOnInTheirSession) {
  Sinks(2);
  Commit(1, {1, 2});
  Publish(2);
  EXPECT_EQ(All<action::StartSource>()[0].session, "session-1");
  for (const action::SendBegin& begin : All<action::SendBegin>()) EXPECT_EQ(begin.session, "session-1");
}

TEST_F(CoordinatorTest, OtherMembersGetASessionOfTheirOwn) {
  Sinks(2);
  Commit(1, {1, 2});
  Step(event::Lost{2, "connection reset"});
  Publish(2);
  EXPECT_EQ(All<action::StartSource>()[0].session, "session-2");
}

TEST_F(CoordinatorTest, ASessionInWhichSomebodyFailedIsNotUsedAgain) {
  Sinks(2);
  Publish(1);
  Release(1);
  Step(event::SourceSent{epoch_, 1});
  Staged(1, 1);
  Staged(2, 1);
  Applied(1, 1);
  Step(event::Failed{2, epoch_, 1, MemberPhase::kApply, absl::InternalError("engine"), false, -1});
  Ready(2);
  Publish(2);
  EXPECT_NE(All<action::StartSource>()[0].session, "session-1");
}

TEST_F(CoordinatorTest, ASessionThatIsStillBeingSentInIsNotUsedAgain) {
  Sinks(1);
  Publish(1);
  Release(1);
  Staged(1, 1);
  Applied(1, 1);
  Publish(2);
  EXPECT_EQ(All<action::StartSource>()[0].session, "session-2");
  EXPECT_THAT(All<action::CancelSource>(), SizeIs(1));
}

TEST_F(CoordinatorTest, ARegistrationEndsTheSession) {
  Sinks(1);
  Commit(1, {1});
  Register();
  Publish(2);
  EXPECT_EQ(All<action::StartSource>()[0].session, "session-2");
}

TEST_F(CoordinatorTest, AVersionTakesFourMessagesPerSinkAndIsLoggedInOneLine) {
  Sinks(2);
  std::map<size_t, int> sent;
  const auto count = [&] {
    for (const Action& action : actions_) ++sent[action.index()];
  };
  Publish(7), count();
  Release(7), count();
  EXPECT_THAT(All<action::PublishReleased>(), SizeIs(1));
  for (const MemberId member : {1, 2}) Staged(member, 7), count();
  for (const MemberId member : {1, 2}) Applied(member, 7), count();
  EXPECT_EQ(sent[Action(action::SendBegin{}).index()], 2);
  EXPECT_EQ(sent[Action(action::SendCommit{}).index()], 2);
  EXPECT_EQ(sent[Action(action::SendAbort{}).index()], 0);
  EXPECT_EQ(sent[Action(action::Log{}).index()], 1);
  EXPECT_TRUE(Answer().ok());
  EXPECT_THAT(All<action::Log>()[0].text, HasSubstr("version 7 committed: 2/2 replicas"));
  EXPECT_EQ(Snapshot().committed, Content(7));
  EXPECT_EQ(Snapshot().state, SyncState::kInSync);
}

TEST_F(CoordinatorTest, VersionZeroAndAMissingCatalogAreRefused) {
  Publish(1);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  Publish(0);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CoordinatorTest, AnOlderVersionIsRefusedWithTheNumberToUse) {
  Sinks(1);
  Commit(5, {1});
  Publish(3);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Text(Answer()), "version 3 is older than committed version 5; versions only grow: publish 6 or higher");
}

TEST_F(CoordinatorTest, TheCommittedVersionAgainIsANoOpForTheSameContentAndAnErrorForOther) {
  Sinks(1);
  Commit(5, {1});
  Publish(5);
  EXPECT_THAT(All<action::CheckContent>(), SizeIs(1));
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  Step(event::ContentChecked{CheckEpoch(), 5, absl::OkStatus(), DigestOf(5)});
  EXPECT_TRUE(Answer().ok());
  EXPECT_TRUE(All<action::PublishDone>()[0].report.already_committed);
  EXPECT_THAT(All<action::PublishDone>()[0].report.replicas, SizeIs(1));
  Publish(5);
  Step(event::ContentChecked{CheckEpoch(), 5, absl::OkStatus(), DigestOf(6)});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(Answer()), HasSubstr("publish this as version 6 or higher"));
}

TEST_F(CoordinatorTest, AContentCheckThatWasGivenUpDoesNotAnswerTheNextPublish) {
  Sinks(1);
  Commit(5, {1});
  Publish(5);
  const uint64_t first = CheckEpoch();
  Step(event::CallersGone{5});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kCancelled);
  ASSERT_THAT(All<action::CancelSource>(), SizeIs(1));
  EXPECT_EQ(All<action::CancelSource>()[0].epoch, first);
  Publish(5);
  const uint64_t second = CheckEpoch();
  EXPECT_GT(second, first);
  EXPECT_THAT(Step(event::ContentChecked{first, 5, absl::OkStatus(), DigestOf(5)}), IsEmpty());
  Step(event::ContentChecked{second, 5, absl::OkStatus(), DigestOf(6)});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CoordinatorTest, AContentCheckThatIsNotAnsweredEnds) {
  Sinks(1);
  Commit(5, {1});
  Publish(5);
  Pass(options_.stage_timeout + absl::Seconds(1));
  EXPECT_EQ(Answer().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(CoordinatorTest, TheSameVersionInFlightIsJoinedAndAnotherIsRefused) {
  Sinks(1);
  Publish(1);
  EXPECT_THAT(Publish(1), IsEmpty());
  Publish(2);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(Answer()), HasSubstr("version 1 is still being published"));
}

TEST_F(CoordinatorTest, TooFewReplicasAreWaitedForAndThenNamedWithTheirReasons) {
  options_.min_replicas = 2;
  Sinks(1);
  Join(2, "sink-2", "r2");
  Step(event::ReadyChanged{2, false, "no engine attached"});
  Publish(1);
  EXPECT_EQ(coordinator_->NextDeadline(), now_ + absl::Milliseconds(250))
      << "a process that stands still is to be noticed";
  Pass(options_.min_replicas_wait - absl::Milliseconds(100));
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  EXPECT_EQ(coordinator_->NextDeadline(), now_ + absl::Milliseconds(100));
  Pass(absl::Milliseconds(100));
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(Answer()), HasSubstr("1 of 2 needed replicas are ready after 5.00 s: replica r2 (sink-2: no engine "
                                        "attached)"));
}

TEST_F(CoordinatorTest, AReplicaThatBecomesReadyInTimeIsWaitedFor) {
  Register();
  Publish(1);
  EXPECT_THAT(All<action::StartSource>(), IsEmpty());
  Pass(absl::Seconds(4));
  Join(1, "a", "r1");
  Ready(1);
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorTest, WithoutNeededReplicasAVersionIsCommittedOnceItIsEncoded) {
  options_.min_replicas = 0;
  Register();
  Publish(1);
  ASSERT_THAT(All<action::StartSource>(), SizeIs(1));
  EXPECT_EQ(All<action::StartSource>()[0].world, 1);
  Release(1);
  EXPECT_TRUE(Answer().ok());
  EXPECT_EQ(Snapshot().committed, Content(1));
}

TEST_F(CoordinatorTest, AfterARestartVersionsGoOnFromWhatMembersServe) {
  Register();
  Join(1, "a", "r1", 0, 1, 41);
  EXPECT_EQ(All<action::SendWelcome>()[0].committed, Content(41));
  Ready(1, 41);
  Pass(absl::Milliseconds(2500));
  Publish(41);
  EXPECT_THAT(All<action::CheckContent>(), SizeIs(1));
  Step(event::ContentChecked{CheckEpoch(), 41, absl::OkStatus(), DigestOf(41)});
  EXPECT_TRUE(Answer().ok());
  Publish(40);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  Commit(42, {1});
}

TEST_F(CoordinatorTest, NewcomersThatServeALaterVersionOvertakeAnUndecidedPublishIfTheyAreMost) {
  Sinks(1);
  Publish(3);
  Join(2, "b", "r2", 0, 1, 9);
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty()) << "one alone may say anything";
  Join(3, "c", "r3", 0, 1, 9);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(Answer()), AllOf(HasSubstr("older than committed version 9"), HasSubstr("most replicas serve it"),
                                    HasSubstr("publish 10 or higher")));
  EXPECT_THAT(To<action::SendAbort>(), ElementsAre(1));
}

// ---- status

TEST_F(CoordinatorTest, StatusGoesFromEmptyOverSyncingToInSync) {
  Sinks(1);
  EXPECT_EQ(Snapshot().state, SyncState::kEmpty);
  Publish(1);
  EXPECT_EQ(Snapshot().state, SyncState::kSyncing);
  EXPECT_EQ(Snapshot().round->phase, "transfer");
  Step(event::HeartbeatSeen{1, epoch_, 1, MemberPhase::kReceive, 25'000'000, 4});
  EXPECT_DOUBLE_EQ(Snapshot().members[0].received_fraction, 0.5);
  Release(1);
  Staged(1, 1);
  EXPECT_EQ(Snapshot().round->phase, "apply");
  Applied(1, 1);
  EXPECT_EQ(Snapshot().state, SyncState::kInSync);
  EXPECT_EQ(Snapshot().reason, "1 replica serves version 1");
  EXPECT_FALSE(Snapshot().round.has_value());
}

TEST_F(CoordinatorTest, ALostMemberIsListedUntilItIsBackOrTenMinutesPassed) {
  Sinks(2);
  Commit(1, {1, 2});
  Step(event::Lost{2, "connection reset"});
  ASSERT_THAT(Snapshot().members, SizeIs(2));
  EXPECT_EQ(Snapshot().members[1].state, "lost");
  EXPECT_EQ(Snapshot().members[1].last_error, "connection reset");
  EXPECT_EQ(Snapshot().state, SyncState::kDegraded);
  Join(3, "sink-2", "r2", 0, 1, 1);
  Ready(3, 1);
  EXPECT_THAT(Snapshot().members, SizeIs(2));
  EXPECT_EQ(Snapshot().state, SyncState::kInSync);
  Step(event::Lost{3, "connection reset"});
  alive_ = {1};
  Pass(absl::Minutes(10));
  EXPECT_THAT(Snapshot().members, SizeIs(1));
}

// 3,000 of them ended the status: its answer was over 4 MiB.
TEST_F(CoordinatorTest, LostMembersAreForgottenBeyondABoundTheOldestFirst) {
  for (MemberId id = 1; id <= 3000; ++id) {
    Join(id, absl::StrCat("m", id), absl::StrCat("r", id));
    now_ += absl::Milliseconds(1);
    Step(event::Lost{id, "connection reset"});
  }
  alive_.clear();
  const std::vector<MemberStatus> members = Snapshot().members;
  ASSERT_THAT(members, SizeIs(256));
  for (const MemberStatus& member : members) EXPECT_GT(member.info.pid, 3000 - 256);
}

TEST_F(CoordinatorTest, AMemberThatSaysGoodbyeIsNotMissed) {
  Sinks(2);
  Commit(1, {1, 2});
  Step(event::Left{2, "shutting down"});
  EXPECT_THAT(Snapshot().members, SizeIs(1));
  EXPECT_EQ(Snapshot().state, SyncState::kInSync);
}

TEST_F(CoordinatorTest, TheHistoryKeepsTheNewestEvents) {
  options_.event_history = 3;
  Sinks(4);
  ASSERT_THAT(Snapshot().events, SizeIs(3));
  EXPECT_THAT(Snapshot().events[2].text, HasSubstr("sink-4 (replica r4, rank 0) is ready"));
}

}  // namespace
}  // namespace wsync
