// What the coordinator believes of what a member says, and whom it goes on without.
#include <string>
#include <vector>

#include "tests/core/coordinator_testing.h"

namespace wsync {
namespace {

class CoordinatorBlameTest : public CoordinatorTest {
 protected:
  // `liar` says that it cannot, as often as it is asked; the others do their part.
  absl::Status PublishAgainst(MemberId liar, uint64_t version, const std::vector<MemberId>& honest) {
    Publish(version);
    Release(version);
    Step(event::Failed{liar, epoch_, version, MemberPhase::kReceive, absl::InternalError("I cannot"), false, -1});
    if (All<action::PublishDone>().empty()) {
      for (const MemberId member : honest) Staged(member, version);
      for (const MemberId member : honest) Applied(member, version);
    }
    return Answer();
  }
  MemberStatus StatusOf(const std::string& name) {
    for (const MemberStatus& member : Snapshot().members) {
      if (member.info.name == name) return member;
    }
    ADD_FAILURE() << name << " is not listed";
    return {};
  }
  void JoinAs(MemberId member, const std::string& name, const std::string& replica, Hash128 incarnation) {
    MemberInfo info{name, replica, 0, 1, "host", static_cast<int64_t>(member), "host", "test"};
    info.incarnation = incarnation;
    Step(event::Joined{member, info});
    Ready(member);
    alive_.push_back(member);
  }
  std::vector<MemberId> Asked() { return To<action::SendBegin>(); }
};

// ---- what it serves

// One Join of this kind refused every publish until the trainer agent was started again.
TEST_F(CoordinatorBlameTest, OneMemberThatSaysItServesTheLastNumberBlocksNoPublish) {
  Sinks(1);
  Join(2, "liar", "r2", 0, 1, UINT64_MAX);
  Join(3, "liar-too", "r3", 0, 1, UINT64_MAX - 1);
  Commit(1, {1});
  EXPECT_EQ(Snapshot().committed, Content(1));
  Commit(2, {1});
}

TEST_F(CoordinatorBlameTest, WhatIsServedByMostIsTheCommittedVersionAfterARestart) {
  Register();
  Join(1, "liar", "r1", 0, 1, 1'000'000);
  EXPECT_EQ(Snapshot().committed, Content(1'000'000)) << "nobody else is there";
  Join(2, "b", "r2", 0, 1, 41);
  EXPECT_EQ(Snapshot().committed, Content(41)) << "one of two does not raise it";
  Join(3, "c", "r3", 0, 1, 41);
  EXPECT_EQ(Snapshot().committed, Content(41));
  Step(event::Left{2, "bye"});
  Step(event::Left{3, "bye"});
  Step(event::Left{1, "bye"});
  EXPECT_EQ(Snapshot().committed.version, 0u) << "with the sinks the number is gone";
}

TEST_F(CoordinatorBlameTest, AnEngineThatGoesDoesNotTakeTheNumberOfTheVersionWithIt) {
  Register();
  Join(1, "a", "r1", 0, 1, 41);
  Step(event::ReadyChanged{1, false, "no engine attached"});
  EXPECT_EQ(Snapshot().committed, Content(41));
}

// Who is back first would decide, and may lie.
TEST_F(CoordinatorBlameTest, APublishIsRefusedForWhatMembersServeOnlyOnceTheyHadTimeToComeBack) {
  Register();
  Join(1, "liar", "r1", 0, 1, 1'000'000);
  Ready(1, 1'000'000);
  Publish(42);
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  Join(2, "b", "r2", 0, 1, 41);
  EXPECT_THAT(Asked(), ElementsAre(1)) << "it is not waited for longer than it has to be";
}

TEST_F(CoordinatorBlameTest, AnOlderVersionIsRefusedAfterARestartAndTheReasonSaysWhoKnows) {
  Register();
  Join(1, "a", "r1", 0, 1, 41);
  Ready(1, 41);
  Publish(40);
  EXPECT_THAT(All<action::PublishDone>(), IsEmpty());
  Pass(absl::Milliseconds(2500));
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(Answer()), AllOf(HasSubstr("older than committed version 41 (most replicas serve it"),
                                    HasSubstr("publish 42 or higher")));
}

TEST_F(CoordinatorBlameTest, OnceAVersionWasDecidedWhatMembersServeIsAboutThemselvesOnly) {
  options_.source_retains = false;
  Sinks(2);
  Commit(5, {1, 2});
  for (const MemberId member : {1, 2}) {
    Step(event::ReadyChanged{member, true, "", kPlan, "engine", {9, {1, 1}}, false});
  }
  EXPECT_EQ(Snapshot().committed, Content(5));
  EXPECT_EQ(Snapshot().state, SyncState::kDegraded);
  EXPECT_THAT(Snapshot().reason, HasSubstr("says it serves version 9, which was never committed here"));
  Commit(6, {1, 2});
}

TEST_F(CoordinatorBlameTest, ACommittedNumberWithAnotherDigestIsNotInSync) {
  options_.source_retains = false;
  Sinks(2);
  Commit(5, {1, 2});
  Step(event::ReadyChanged{1, true, "", kPlan, "engine", {5, {1, 1}}, false});
  EXPECT_THAT(Snapshot().reason, HasSubstr("serves other content as version 5"));
}

TEST_F(CoordinatorBlameTest, TheNumberAfterWhichThereIsNoneIsNotPublished) {
  Sinks(1);
  Publish(UINT64_MAX);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kInvalidArgument);
}

// ---- fences

TEST_F(CoordinatorBlameTest, WhoCostsTwoVersionsInARowIsFencedAndTheSecondOneGoesToTheOthers) {
  Sinks(3);
  EXPECT_FALSE(PublishAgainst(3, 1, {1, 2}).ok());
  EXPECT_EQ(StatusOf("sink-3").state, "ready");
  EXPECT_THAT(StatusOf("sink-3").last_error, HasSubstr("I cannot"));
  EXPECT_TRUE(PublishAgainst(3, 1, {1, 2}).ok());
  const VersionReport report = All<action::PublishDone>()[0].report;
  ASSERT_THAT(report.replicas, SizeIs(3));
  EXPECT_EQ(report.replicas[2].result, ReplicaResult::kLeftOut);
  EXPECT_THAT(report.replicas[2].reason, HasSubstr("I cannot"));
  EXPECT_EQ(StatusOf("sink-3").state, "fenced");
  EXPECT_THAT(StatusOf("sink-3").last_error, AllOf(HasSubstr("I cannot"), HasSubstr("wsync unfence sink-3")));
  EXPECT_EQ(Snapshot().state, SyncState::kDegraded);
  EXPECT_THAT(Snapshot().reason, HasSubstr("sink-3 (replica r3) is fenced, since it cost 2 versions in a row"));
  Commit(2, {1, 2});
  EXPECT_EQ(StatusOf("sink-1").state, "ready");
}

TEST_F(CoordinatorBlameTest, AVersionThatItTakesWithTheOthersForgivesTheLostOne) {
  Sinks(2);
  EXPECT_FALSE(PublishAgainst(2, 1, {1}).ok());
  Commit(1, {1, 2});
  EXPECT_FALSE(PublishAgainst(2, 2, {1}).ok());
  EXPECT_EQ(StatusOf("sink-2").state, "ready");
}

TEST_F(CoordinatorBlameTest, AStallingMemberCostsTwoVersionsTheirDeadlineAndTheThirdNothing) {
  options_.source_retains = false;  // nor a catch-up
  Sinks(3);
  for (uint64_t version = 1; version <= 2; ++version) {
    Publish(version);
    Release(version);
    Staged(1, version);
    Staged(2, version);
    beat_epoch_ = epoch_;
    Pass(absl::Seconds(10));  // a second of it for the bytes
    EXPECT_THAT(To<action::SendCommit>(), ElementsAre(1, 2)) << version;
    Applied(1, version);
    Applied(2, version);
    EXPECT_TRUE(Answer().ok());
    beat_epoch_ = 0;
    Pass(absl::Milliseconds(100));
  }
  EXPECT_EQ(StatusOf("sink-3").state, "fenced");
  EXPECT_THAT(StatusOf("sink-3").last_error, HasSubstr("did not stage in time"));
  Publish(3);
  EXPECT_THAT(Asked(), ElementsAre(1, 2));
}

TEST_F(CoordinatorBlameTest, AMemberThatNeverSaysAppliedIsFencedAfterTwoVersions) {
  options_.source_retains = false;
  Sinks(2);
  for (uint64_t version = 1; version <= 2; ++version) {
    Publish(version);
    Release(version);
    Staged(1, version);
    Staged(2, version);
    Applied(1, version);
    beat_epoch_ = epoch_;
    Pass(options_.apply_timeout);
    EXPECT_TRUE(Answer().ok());
    beat_epoch_ = 0;
    Pass(absl::Milliseconds(100));  // by which it says that it works on nothing any more
  }
  EXPECT_EQ(StatusOf("sink-2").state, "fenced");
  Publish(3);
  EXPECT_THAT(Asked(), ElementsAre(1));
}

TEST_F(CoordinatorBlameTest, ALiarAboutItsDigestIsFencedAndTheHonestOneIsNot) {
  Sinks(2);
  for (int lost = 1; lost <= 2; ++lost) {
    Publish(1);
    Release(1);
    Staged(1, 1);
    for (int attempt = 1; attempt <= 3; ++attempt) {
      Step(event::Staged{2, epoch_, 1, DigestOf(99), {}});
      if (attempt < 3) Staged(1, 1);
    }
    Pass(absl::Milliseconds(600));
    if (lost == 1) {
      EXPECT_EQ(Answer().code(), absl::StatusCode::kDataLoss);
    }
  }
  EXPECT_THAT(Asked(), ElementsAre(1)) << "the second lost version goes to the others";
  Staged(1, 1);
  Applied(1, 1);
  EXPECT_TRUE(Answer().ok());
  EXPECT_EQ(StatusOf("sink-2").state, "fenced");
  EXPECT_EQ(StatusOf("sink-1").state, "ready");
}

// Without it there would be nobody to go on with.
TEST_F(CoordinatorBlameTest, NobodyIsFencedWhereTooFewWouldRemain) {
  options_.min_replicas = 2;
  Sinks(2);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(PublishAgainst(2, 1, {}).ok());
  EXPECT_EQ(StatusOf("sink-2").state, "ready");
  EXPECT_THAT(StatusOf("sink-2").last_error, HasSubstr("I cannot"));
}

TEST_F(CoordinatorBlameTest, AFencedReplicaDoesNotCountForMinReplicas) {
  options_.min_replicas = 2;
  options_.min_replicas_wait = absl::Seconds(1);
  Sinks(3);
  EXPECT_FALSE(PublishAgainst(3, 1, {1, 2}).ok());
  EXPECT_TRUE(PublishAgainst(3, 1, {1, 2}).ok());
  Step(event::Left{2, "bye"});
  alive_ = {1, 3};
  Publish(2);
  Pass(absl::Seconds(1));
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(Answer()), AllOf(HasSubstr("1 of 2 needed replicas"), HasSubstr("wsync unfence sink-3")));
}

TEST_F(CoordinatorBlameTest, AFenceOutlivesAReconnectAndEndsWithTheProcess) {
  Register();
  JoinAs(1, "a", "r1", {1, 1});
  JoinAs(2, "b", "r2", {2, 2});
  EXPECT_FALSE(PublishAgainst(2, 1, {1}).ok());
  EXPECT_TRUE(PublishAgainst(2, 1, {1}).ok());
  JoinAs(3, "b", "r2", {2, 2});
  EXPECT_EQ(StatusOf("b").state, "fenced");
  Step(event::Lost{3, "killed"});
  JoinAs(4, "b", "r2", {3, 3});
  EXPECT_NE(StatusOf("b").state, "fenced");
}

TEST_F(CoordinatorBlameTest, WhoWasFencedBeforeIsFencedAgainForASingleVersion) {
  options_.source_retains = false;
  Register();
  JoinAs(1, "a", "r1", {1, 1});
  JoinAs(2, "b", "r2", {2, 2});
  EXPECT_FALSE(PublishAgainst(2, 1, {1}).ok());
  Publish(1);
  Release(1);
  Step(event::Lost{2, "killed"});
  JoinAs(3, "b", "r2", {3, 3});
  Staged(1, 1);
  Applied(1, 1);
  Publish(2);
  EXPECT_THAT(Asked(), ElementsAre(1, 3));
  Step(event::Failed{3, epoch_, 2, MemberPhase::kReceive, absl::InternalError("I cannot"), false, -1});
  EXPECT_EQ(StatusOf("b").state, "fenced");
}

TEST_F(CoordinatorBlameTest, AFenceIsLiftedByNameOrAllAndElseItIsSaidWhoIsFenced) {
  Sinks(2);
  EXPECT_FALSE(PublishAgainst(2, 1, {1}).ok());
  Step(event::Unfence{"sink-2"});
  ASSERT_THAT(All<action::Unfenced>(), SizeIs(1));
  EXPECT_EQ(All<action::Unfenced>()[0].status.code(), absl::StatusCode::kNotFound) << "once may be an accident";
  Publish(1);
  Step(event::Failed{2, epoch_, 1, MemberPhase::kReceive, absl::InternalError("I cannot"), false, -1});
  Release(1);
  Staged(1, 1);
  Applied(1, 1);
  EXPECT_TRUE(Answer().ok());
  Step(event::Unfence{"sink-1"});
  EXPECT_EQ(All<action::Unfenced>()[0].status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Text(All<action::Unfenced>()[0].status), HasSubstr("fenced are: sink-2"));
  Step(event::Unfence{""});
  EXPECT_THAT(All<action::Unfenced>()[0].names, ElementsAre("sink-2"));
  Publish(2);
  EXPECT_THAT(Asked(), ElementsAre(1, 2));
}

// ---- tokens

TEST_F(CoordinatorBlameTest, EachRankHasATokenOfItsOwnAndKeepsItWithTheSession) {
  options_.new_rank_token = [n = 0](const std::string& session) mutable { return absl::StrCat(session, "/", ++n); };
  Sinks(2);
  Publish(1);
  const auto first = All<action::SendBegin>();
  ASSERT_THAT(first, SizeIs(2));
  EXPECT_EQ(first[0].session, "session-1/1");
  EXPECT_EQ(first[1].session, "session-1/2");
  EXPECT_THAT(All<action::StartSource>()[0].peer_tokens, ElementsAre("session-1/1", "session-1/2"));
  Release(1);
  Step(event::SourceSent{epoch_, 1});
  for (const MemberId member : {1, 2}) Staged(member, 1);
  for (const MemberId member : {1, 2}) Applied(member, 1);
  Publish(2);
  EXPECT_EQ(All<action::StartSource>()[0].session, "session-1");
  EXPECT_THAT(All<action::StartSource>()[0].peer_tokens, ElementsAre("session-1/1", "session-1/2"));
}

}  // namespace
}  // namespace wsync
