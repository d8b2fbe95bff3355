// One attempt at a time: what decides it, what ends it, who is named.
#include "server/core/round.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr Hash128 kDigest{1, 2};
constexpr Hash128 kOther{3, 4};
constexpr uint64_t kEpoch = 9;
constexpr uint64_t kVersion = 7;

template <typename T>
std::vector<MemberId> To(const Actions& actions) {
  std::vector<MemberId> members;
  for (const Action& action : actions) {
    if (const T* one = std::get_if<T>(&action)) members.push_back(one->member);
  }
  return members;
}

class RoundTest : public ::testing::Test {
 protected:
  // Member i is the only rank of replica r<i>.
  Round Make(int replicas) {
    std::vector<Participant> participants;
    for (int i = 1; i <= replicas; ++i) {
      participants.push_back({static_cast<MemberId>(i), absl::StrCat("sink-", i), absl::StrCat("r", i), 0});
    }
    return Round(kEpoch, kVersion, participants, options_, now_);
  }
  // Members 1 and 2 are the ranks of replica a, member 3 is replica b.
  Round MakeTwoRanks() {
    return Round(kEpoch, kVersion, {{1, "a0", "a", 0}, {2, "a1", "a", 1}, {3, "b0", "b", 0}}, options_, now_);
  }
  event::Staged Staged(MemberId member, Hash128 digest = kDigest) { return {member, kEpoch, kVersion, digest, {}}; }
  event::Applied Applied(MemberId member, Hash128 digest = kDigest) { return {member, kEpoch, kVersion, digest, {}}; }
  event::Failed Failed(MemberId member, absl::Status status, MemberPhase phase = MemberPhase::kReceive) {
    return {member, kEpoch, kVersion, phase, std::move(status), false, 3};
  }
  Actions Stage(Round& round, std::vector<MemberId> members) {
    Actions last = round.SourceReleased(now_, kDigest);
    for (const MemberId member : members) last = round.Staged(now_, Staged(member));
    return last;
  }

  static std::vector<std::string> Guilty(const Round& round) {
    std::vector<std::string> names;
    for (const Culprit& culprit : round.Culprits()) names.push_back(culprit.name);
    return names;
  }
  // What the source sees of its sinks.
  void See(std::vector<PeerProgress> peers) {
    options_.peers = [peers = std::move(peers)] { return std::optional(peers); };
  }

  RoundOptions options_{.stage_timeout = absl::Seconds(10), .apply_timeout = absl::Seconds(30)};
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
};

TEST_F(RoundTest, CommitsWhenEveryParticipantStagedTheSourcesDigest) {
  Round round = Make(2);
  EXPECT_THAT(round.SourceReleased(now_, kDigest), IsEmpty());
  EXPECT_THAT(round.Staged(now_, Staged(1)), IsEmpty());
  EXPECT_EQ(round.phase(), RoundPhase::kTransfer);
  EXPECT_THAT(To<action::SendCommit>(round.Staged(now_, Staged(2))), ElementsAre(1, 2));
  EXPECT_EQ(round.phase(), RoundPhase::kApply);
  round.Applied(now_, Applied(1));
  EXPECT_EQ(round.phase(), RoundPhase::kApply);
  round.Applied(now_, Applied(2));
  EXPECT_EQ(round.phase(), RoundPhase::kCommitted);
  EXPECT_EQ(round.AppliedReplicas(), 2);
}

TEST_F(RoundTest, WaitsForTheSourcesDigestEvenIfAllHaveStaged) {
  Round round = Make(1);
  EXPECT_THAT(round.Staged(now_, Staged(1)), IsEmpty());
  EXPECT_EQ(round.phase(), RoundPhase::kTransfer);
  EXPECT_THAT(To<action::SendCommit>(round.SourceReleased(now_, kDigest)), ElementsAre(1));
}

TEST_F(RoundTest, WithoutParticipantsCommitsOnceTheDigestIsKnown) {
  options_.min_replicas = 0;
  Round round = Make(0);
  EXPECT_EQ(round.phase(), RoundPhase::kTransfer);
  round.SourceReleased(now_, kDigest);
  EXPECT_EQ(round.phase(), RoundPhase::kCommitted);
}

TEST_F(RoundTest, MessagesOfAnotherEpochOrVersionChangeNothing) {
  Round round = Make(1);
  round.SourceReleased(now_, kDigest);
  EXPECT_THAT(round.Staged(now_, {1, kEpoch - 1, kVersion, kDigest, {}}), IsEmpty());
  EXPECT_THAT(round.Staged(now_, {1, kEpoch, kVersion - 1, kDigest, {}}), IsEmpty());
  EXPECT_THAT(round.Failed(now_, {1, kEpoch - 1, kVersion, MemberPhase::kReceive, absl::InternalError("x")}),
              IsEmpty());
  EXPECT_EQ(round.phase(), RoundPhase::kTransfer);
  round.Staged(now_, Staged(1));
  round.Applied(now_, {1, kEpoch - 1, kVersion, kDigest, {}});
  EXPECT_EQ(round.phase(), RoundPhase::kApply);
}

TEST_F(RoundTest, DamagedContentIsSentAgainAndOnTheLastAttemptAborts) {
  Round first = Make(2);
  first.SourceReleased(now_, kDigest);
  EXPECT_THAT(To<action::SendAbort>(first.Staged(now_, Staged(1, kOther))), ElementsAre(1, 2));
  EXPECT_EQ(first.phase(), RoundPhase::kRestart);
  EXPECT_THAT(first.dropped(), IsEmpty());
  options_.retry = false;
  Round last = Make(2);
  last.Staged(now_, Staged(1, kOther));
  EXPECT_EQ(last.phase(), RoundPhase::kTransfer);
  last.SourceReleased(now_, kDigest);
  EXPECT_THAT(To<action::SendAbort>(last.Tick(now_ + options_.settle)), ElementsAre(1, 2));
  EXPECT_EQ(last.phase(), RoundPhase::kAborted);
  EXPECT_THAT(Guilty(last), ElementsAre("sink-1"));
  EXPECT_EQ(last.why().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(last.why().message()), HasSubstr("replica r1 rank 0 (sink-1)"));
}

TEST_F(RoundTest, ALossWhileOthersReceiveRestartsWithTheSurvivors) {
  Round round = Make(3);
  round.SourceReleased(now_, kDigest);
  round.Staged(now_, Staged(1));
  EXPECT_THAT(To<action::SendAbort>(round.Lost(now_, {{2, "connection reset"}})), ElementsAre(1, 3));
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  EXPECT_THAT(round.survivors(), ElementsAre(1, 3));
  ASSERT_THAT(round.dropped(), SizeIs(1));
  EXPECT_EQ(round.dropped()[0].replica, "r2");
}

TEST_F(RoundTest, ALossAfterAllOthersStagedIsDecidedWithoutIt) {
  Round round = Make(3);
  Stage(round, {1, 3});
  EXPECT_THAT(To<action::SendCommit>(round.Lost(now_, {{2, "connection reset"}})), ElementsAre(1, 3));
  EXPECT_EQ(round.phase(), RoundPhase::kApply);
}

// It failed the version for everybody: the sink lives and said so itself.
TEST_F(RoundTest, AnEngineThatIsLostAfterItsSinkStagedCostsItsReplicaOnly) {
  Round round = Make(3);
  Stage(round, {1, 2});
  const Actions actions =
      round.Failed(now_, Failed(1, absl::UnavailableError("engine e is gone"), MemberPhase::kStaged));
  EXPECT_THAT(To<action::SendAbort>(actions), ElementsAre(2, 3));
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  EXPECT_THAT(round.survivors(), ElementsAre(2, 3));
  ASSERT_THAT(round.dropped(), SizeIs(1));
  EXPECT_THAT(round.dropped()[0].reason, HasSubstr("in phase staged"));
}

TEST_F(RoundTest, MembersLostTogetherAreNotCountedForADecision) {
  options_.min_replicas = 2;
  Round round = Make(3);
  Stage(round, {1, 3});
  round.Lost(now_, {{2, "no heartbeat"}, {3, "no heartbeat"}});
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
}

TEST_F(RoundTest, ALostRankTakesItsReplicaOutAndTheOtherRankIsTold) {
  Round round = MakeTwoRanks();
  Stage(round, {1, 3});
  const Actions actions = round.Lost(now_, {{2, "connection reset"}});
  EXPECT_THAT(To<action::SendAbort>(actions), ElementsAre(1));
  EXPECT_THAT(To<action::SendCommit>(actions), ElementsAre(3));
}

TEST_F(RoundTest, TooFewLeftAbortsAndNamesMemberPhaseBucketAndAge) {
  options_.min_replicas = 2;
  Round round = Make(2);
  round.Heartbeat(now_ + absl::Seconds(1), {1, kEpoch, kVersion, MemberPhase::kReceive, 100, 5});
  round.Lost(now_ + absl::Seconds(4), {{1, "no heartbeat for 3.0 s"}});
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_EQ(round.why().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      std::string(round.why().message()),
      HasSubstr("replica r1 rank 0 (sink-1) was lost in phase receive, bucket 5, 4.0 s after begin, last heard of "
                "3.0 s before: no heartbeat for 3.0 s; 1 of 2 replicas remains, 2 are needed"));
}

TEST_F(RoundTest, ALiveSinkThatRefusesAbortsUnderPolicyAll) {
  Round round = Make(2);
  const Actions actions = round.Failed(now_, Failed(2, absl::ResourceExhaustedError("no memory")));
  EXPECT_THAT(To<action::SendAbort>(actions), ElementsAre(1, 2));
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_THAT(std::string(round.why().message()), HasSubstr("sink-2) failed in phase receive, bucket 3"));
}

TEST_F(RoundTest, ASinkThatRefusesIsLeftOutUnderAQuorum) {
  options_.quorum = 2;
  Round staged = Make(3);
  Stage(staged, {1, 2});
  EXPECT_THAT(To<action::SendCommit>(staged.Failed(now_, Failed(3, absl::InternalError("x")))), ElementsAre(1, 2));
  Round receiving = Make(3);
  receiving.Failed(now_, Failed(3, absl::InternalError("x")));
  EXPECT_EQ(receiving.phase(), RoundPhase::kRestart);
  Round too_few = Make(2);
  too_few.Failed(now_, Failed(2, absl::InternalError("x")));
  EXPECT_EQ(too_few.phase(), RoundPhase::kAborted);
}

TEST_F(RoundTest, ABrokenSessionWaitsForTheLossThatExplainsIt) {
  Round round = Make(3);
  EXPECT_THAT(round.Failed(now_, Failed(1, absl::UnavailableError("peer is gone"))), IsEmpty());
  EXPECT_EQ(round.phase(), RoundPhase::kTransfer);
  EXPECT_EQ(round.deadline(), now_ + options_.settle);
  round.Lost(now_ + absl::Milliseconds(100), {{2, "connection reset"}});
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  ASSERT_THAT(round.dropped(), SizeIs(1));
  EXPECT_EQ(round.dropped()[0].replica, "r2");
}

TEST_F(RoundTest, ABrokenSessionThatNothingExplainsIsTriedAgainWithTheSame) {
  Round round = Make(2);
  round.SourceFailed(now_, {kEpoch, kVersion, absl::UnavailableError("connection reset"), false});
  EXPECT_THAT(round.Tick(now_ + options_.settle - absl::Milliseconds(1)), IsEmpty());
  EXPECT_THAT(To<action::SendAbort>(round.Tick(now_ + options_.settle)), ElementsAre(1, 2));
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  EXPECT_THAT(round.dropped(), IsEmpty());
  EXPECT_THAT(round.survivors(), ElementsAre(1, 2));
}

TEST_F(RoundTest, OnTheLastAttemptABrokenSessionIsTheReportersFailure) {
  options_.retry = false;
  Round all = Make(2);
  all.Failed(now_, Failed(1, absl::UnavailableError("cannot connect"), MemberPhase::kConnect));
  all.Tick(now_ + options_.settle);
  EXPECT_EQ(all.phase(), RoundPhase::kAborted);
  EXPECT_THAT(std::string(all.why().message()), HasSubstr("sink-1) failed in phase connect"));
  options_.quorum = 1;
  Round quorum = Make(2);
  Stage(quorum, {2});
  quorum.Failed(now_, Failed(1, absl::UnavailableError("cannot connect"), MemberPhase::kConnect));
  EXPECT_THAT(To<action::SendCommit>(quorum.Tick(now_ + options_.settle)), ElementsAre(2));
}

TEST_F(RoundTest, ALostVersionAbortsAtOnce) {
  Round round = Make(1);
  round.SourceFailed(now_, {kEpoch, kVersion, absl::DataLossError("NaN in model.x at 17"), true});
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_THAT(std::string(round.why().message()), HasSubstr("NaN in model.x at 17"));
}

TEST_F(RoundTest, AtTheStageDeadlineThoseWhoStagedGoOnIfTheyAreEnough) {
  Round round = Make(3);
  Stage(round, {1, 2});
  EXPECT_EQ(round.deadline(), now_ + options_.stage_timeout);
  const Actions actions = round.Tick(now_ + options_.stage_timeout);
  EXPECT_THAT(To<action::SendAbort>(actions), ElementsAre(3));
  EXPECT_THAT(To<action::SendCommit>(actions), ElementsAre(1, 2));
  EXPECT_THAT(round.dropped()[0].reason, HasSubstr("sink-3) did not stage in time"));
}

TEST_F(RoundTest, AtTheStageDeadlineTheSlowestIsDroppedIfNobodyStaged) {
  Round round = Make(3);
  round.SourceReleased(now_, kDigest);
  for (const MemberId member : {1, 2, 3}) {
    round.Heartbeat(now_, {member, kEpoch, kVersion, MemberPhase::kReceive, member == 2 ? 10u : 20u, 1});
  }
  EXPECT_THAT(To<action::SendAbort>(round.Tick(now_ + options_.stage_timeout)), ElementsAre(2, 1, 3));
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  EXPECT_THAT(round.survivors(), ElementsAre(1, 3));
}

// A source whose sender hung was never named, but the first of its sinks.
TEST_F(RoundTest, AtTheStageDeadlineAllEquallySlowAbortAndNameTheSource) {
  Round round = Make(2);
  round.SourceReleased(now_, kDigest);
  round.Tick(now_ + options_.stage_timeout);
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_EQ(round.why().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(round.why().message()), HasSubstr("the source did not bring the version to any replica"));
}

TEST_F(RoundTest, AtTheStageDeadlineASourceThatDidNotEncodeIsToBlame) {
  Round round = Make(1);
  round.Tick(now_ + options_.stage_timeout);
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_THAT(std::string(round.why().message()), HasSubstr("the source did not encode the version in time"));
}

// ---- who is to blame

// The source was named, or an honest sink.
TEST_F(RoundTest, WhoNeverOpenedItsStreamIsToBlameAndNobodyElse) {
  See({{true, false, 0}, {false, false, 0}, {true, false, 0}});
  Round round = Make(3);
  round.SourceReleased(now_, kDigest);
  for (const MemberId member : {1, 2, 3}) {
    round.Heartbeat(now_, {member, kEpoch, kVersion, MemberPhase::kReceive, member == 2 ? 1'000'000u : 0u, 1});
  }
  EXPECT_THAT(To<action::SendAbort>(round.Tick(now_ + options_.stage_timeout)), ElementsAre(2, 1, 3));
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  EXPECT_THAT(round.survivors(), ElementsAre(1, 3));
  EXPECT_THAT(Guilty(round), ElementsAre("sink-2"));
  EXPECT_THAT(round.dropped()[0].reason, HasSubstr("never opened its data stream"));
}

TEST_F(RoundTest, WithNobodyAtItsDataPlaneItIsTheSourcesFault) {
  See({{}, {}});
  Round round = Make(2);
  round.SourceReleased(now_, kDigest);
  round.Tick(now_ + options_.stage_timeout);
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_THAT(Guilty(round), IsEmpty());
}

TEST_F(RoundTest, WhatASinkSaysItReceivedIsNotBelievedAgainstTheSourcesAccount) {
  See({{true, false, 500}, {true, false, 100}, {true, false, 500}});
  Round round = Make(3);
  round.SourceReleased(now_, kDigest);
  round.Heartbeat(now_, {2, kEpoch, kVersion, MemberPhase::kReceive, UINT64_MAX, 9});
  round.Tick(now_ + options_.stage_timeout);
  EXPECT_THAT(Guilty(round), ElementsAre("sink-2"));
  EXPECT_THAT(round.survivors(), ElementsAre(1, 3));
}

TEST_F(RoundTest, ASinkThatBreaksItsStreamIsToBlameAndNotThoseThatComplainOfIt) {
  options_.retry = false;
  See({{true, false, 5}, {true, true, 5}, {true, false, 5}});
  Round round = Make(3);
  round.Failed(now_, Failed(1, absl::UnavailableError("the stream broke")));
  round.SourceFailed(now_, {kEpoch, kVersion, absl::UnavailableError("rank 2 is gone"), false});
  round.Failed(now_, Failed(3, absl::UnavailableError("the stream broke")));
  round.Tick(now_ + options_.settle);
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_THAT(Guilty(round), ElementsAre("sink-2"));
  EXPECT_THAT(std::string(round.why().message()), HasSubstr("replica r2 rank 0 (sink-2) is why the session broke"));
}

TEST_F(RoundTest, ASourceThatBreaksTheSessionByItselfAccusesNobody) {
  options_.retry = false;
  See({{true, false, 5}, {true, false, 5}});
  Round round = Make(2);
  round.Failed(now_, Failed(1, absl::UnavailableError("the stream broke")));
  round.SourceFailed(now_, {kEpoch, kVersion, absl::UnavailableError("no memory"), false});
  round.Tick(now_ + options_.settle);
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_THAT(Guilty(round), IsEmpty());
}

TEST_F(RoundTest, ASinkThatCallsAWholeSessionBrokenIsToBlame) {
  options_.retry = false;
  See({{true, false, 5}, {true, false, 5}});
  Round round = Make(2);
  round.Failed(now_, Failed(1, absl::UnavailableError("the stream broke")));
  round.Tick(now_ + options_.settle);
  EXPECT_THAT(Guilty(round), ElementsAre("sink-1"));
}

// NCCL tells nothing of its ranks, and one that does not come stops all.
TEST_F(RoundTest, WhereTheSourceSeesNobodyTheOneThatDoesNotComplainOfALongWaitIsToBlame) {
  Round round = Make(3);
  for (const MemberId member : {1, 3}) {
    round.Failed(now_, Failed(member, absl::DeadlineExceededError("cannot connect"), MemberPhase::kConnect));
  }
  round.Tick(now_ + options_.settle);
  EXPECT_EQ(round.phase(), RoundPhase::kRestart);
  EXPECT_THAT(Guilty(round), ElementsAre("sink-2"));
  EXPECT_THAT(round.survivors(), ElementsAre(1, 3));
}

TEST_F(RoundTest, ASinkThatComplainsOfALongWaitAloneBlamesItself) {
  Round round = Make(3);
  round.Failed(now_, Failed(2, absl::DeadlineExceededError("cannot connect"), MemberPhase::kConnect));
  round.Tick(now_ + options_.settle);
  EXPECT_THAT(Guilty(round), ElementsAre("sink-2"));
}

TEST_F(RoundTest, DamageThatEverySinkSeesIsTheSources) {
  options_.retry = false;
  Round round = Make(2);
  round.Failed(now_, Failed(1, absl::DataLossError("bucket 3")));
  round.Failed(now_, Failed(2, absl::DataLossError("bucket 3")));
  round.Tick(now_ + options_.settle);
  EXPECT_EQ(round.phase(), RoundPhase::kAborted);
  EXPECT_EQ(round.why().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Guilty(round), IsEmpty());
}

TEST_F(RoundTest, WhoNeverSaysAppliedIsToBlameThatOthersWereWaitedFor) {
  Round round = Make(2);
  Stage(round, {1, 2});
  round.Applied(now_, Applied(1));
  round.Tick(now_ + options_.apply_timeout);
  EXPECT_THAT(Guilty(round), ElementsAre("sink-2"));
}

TEST_F(RoundTest, ALossIsNobodysGuilt) {
  Round round = Make(2);
  Stage(round, {1});
  round.Lost(now_, {{2, "connection reset"}});
  EXPECT_THAT(Guilty(round), IsEmpty());
}

TEST_F(RoundTest, AfterTheDecisionNobodyIsWaitedForBeyondTheApplyDeadline) {
  Round round = Make(3);
  Stage(round, {1, 2, 3});
  round.Applied(now_, Applied(1));
  round.Lost(now_, {{2, "connection reset"}});
  EXPECT_EQ(round.phase(), RoundPhase::kApply);
  EXPECT_EQ(round.deadline(), now_ + options_.apply_timeout);
  EXPECT_THAT(round.Tick(now_ + options_.apply_timeout), IsEmpty());
  EXPECT_EQ(round.phase(), RoundPhase::kCommitted);
  const auto outcomes = round.Outcomes();
  EXPECT_EQ(outcomes[0].result, ReplicaResult::kApplied);
  EXPECT_EQ(outcomes[1].result, ReplicaResult::kLeftOut);
  EXPECT_THAT(outcomes[1].reason, HasSubstr("was lost before it said 'applied'"));
  EXPECT_THAT(outcomes[2].reason, HasSubstr("did not apply in time"));
}

TEST_F(RoundTest, ReplicasAreTornByAFailureMidApplyByWrongContentAndByRanksThatDisagree) {
  Round round = Make(2);
  Stage(round, {1, 2});
  event::Failed failed = Failed(1, absl::InternalError("engine"), MemberPhase::kApply);
  failed.torn = true;
  round.Failed(now_, failed);
  round.Applied(now_, Applied(2, kOther));
  EXPECT_EQ(round.Outcomes()[0].result, ReplicaResult::kTorn);
  EXPECT_EQ(round.Outcomes()[1].result, ReplicaResult::kTorn);
  Round ranks = MakeTwoRanks();
  Stage(ranks, {1, 2, 3});
  ranks.Applied(now_, Applied(1));
  ranks.Failed(now_, Failed(2, absl::InternalError("engine"), MemberPhase::kPause));
  EXPECT_EQ(ranks.Outcomes()[0].result, ReplicaResult::kTorn);
}

TEST_F(RoundTest, CancelAbortsBeforeTheDecisionAndDoesNothingAfterIt) {
  Round before = Make(1);
  EXPECT_THAT(To<action::SendAbort>(before.Cancel(absl::CancelledError("x"))), ElementsAre(1));
  EXPECT_EQ(before.phase(), RoundPhase::kAborted);
  Round after = Make(1);
  Stage(after, {1});
  EXPECT_THAT(after.Cancel(absl::CancelledError("x")), IsEmpty());
  EXPECT_EQ(after.phase(), RoundPhase::kApply);
}

}  // namespace
}  // namespace wsync
