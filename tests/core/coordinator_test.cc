// The coordinator's rules, one by one, by what it asks for.
#include "server/core/coordinator.h"

#include <map>
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

constexpr Hash128 kPlan{10, 1};
constexpr Hash128 kOtherPlan{10, 2};
Hash128 DigestOf(uint64_t version) { return {100, version}; }
ServedVersion Content(uint64_t version) { return {version, version == 0 ? Hash128{} : DigestOf(version)}; }
std::string Text(const absl::Status& status) { return std::string(status.message()); }

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() {
    options_.new_session_token = [this] { return absl::StrCat("session-", ++sessions_); };
  }
  void Start() { coordinator_ = std::make_unique<Coordinator>(options_, now_); }
  const Actions& Step(const Event& event) {
    if (coordinator_ == nullptr) Start();
    actions_ = coordinator_->Step(now_, event);
    for (const Action& action : actions_) {
      if (const auto* start = std::get_if<action::StartSource>(&action)) epoch_ = start->epoch;
    }
    return actions_;
  }
  // Time passes, with everybody's heart beating.
  void Pass(absl::Duration duration, const std::vector<MemberId>& silent = {}) {
    std::vector<Action> all;
    for (const absl::Time end = now_ + duration; now_ < end;) {
      now_ = std::min(end, now_ + absl::Milliseconds(100));
      for (const MemberId member : alive_) {
        if (std::find(silent.begin(), silent.end(), member) != silent.end()) continue;
        Step(event::HeartbeatSeen{member, beat_epoch_, 0, MemberPhase::kIdle, 0, -1});
        all.insert(all.end(), actions_.begin(), actions_.end());
      }
      Step(event::Tick{});
      all.insert(all.end(), actions_.begin(), actions_.end());
    }
    actions_ = all;
  }
  template <typename T>
  std::vector<T> All() const {
    std::vector<T> found;
    for (const Action& action : actions_) {
      if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
    }
    return found;
  }
  template <typename T>
  std::vector<MemberId> To() const {
    std::vector<MemberId> members;
    for (const T& action : All<T>()) members.push_back(action.member);
    return members;
  }
  const Actions& Register(Hash128 plan = kPlan) {
    PlanInfo info;
    info.plan_hash = info.catalog_fingerprint = plan;
    info.wire_bytes = 50'000'000;  // one second at the least rate
    return Step(event::CatalogRegistered{info});
  }
  const Actions& Join(MemberId member, const std::string& name, const std::string& replica, int rank = 0, int size = 1,
                      uint64_t serving = 0) {
    alive_.push_back(member);
    return Step(event::Joined{
        member, {name, replica, rank, size, "host", static_cast<int64_t>(member), "host", "test", Content(serving)}});
  }
  const Actions& Ready(MemberId member, uint64_t serving = 0, Hash128 plan = kPlan) {
    return Step(event::ReadyChanged{member, true, "", plan, "engine", Content(serving), false});
  }
  // Members 1..n, each a replica of its own, ready.
  void Sinks(int n) {
    Register();
    for (int i = 1; i <= n; ++i) {
      Join(i, absl::StrCat("sink-", i), absl::StrCat("r", i));
      Ready(i);
    }
  }
  const Actions& Publish(uint64_t version) { return Step(event::Publish{version}); }
  const Actions& Release(uint64_t version) {
    return Step(event::SourceReleased{version, DigestOf(version), absl::Milliseconds(5), epoch_});
  }
  const Actions& Staged(MemberId member, uint64_t version) {
    return Step(event::Staged{member, epoch_, version, DigestOf(version), {}});
  }
  const Actions& Applied(MemberId member, uint64_t version) {
    return Step(event::Applied{member, epoch_, version, DigestOf(version), {}});
  }
  void Commit(uint64_t version, const std::vector<MemberId>& members) {
    Publish(version);
    Release(version);
    Step(event::SourceSent{epoch_, version});
    for (const MemberId member : members) Staged(member, version);
    for (const MemberId member : members) Applied(member, version);
    ASSERT_THAT(All<action::PublishDone>(), SizeIs(1));
    ASSERT_TRUE(All<action::PublishDone>()[0].status.ok());
  }
  absl::Status Answer() const {
    const auto done = All<action::PublishDone>();
    EXPECT_THAT(done, SizeIs(1));
    return done.empty() ? absl::UnknownError("no answer") : done[0].status;
  }
  StatusSnapshot Snapshot() { return coordinator_->Snapshot(now_); }

  CoordinatorOptions options_;
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  std::unique_ptr<Coordinator> coordinator_;
  Actions actions_;
  std::vector<MemberId> alive_;
  uint64_t epoch_ = 0;
  uint64_t beat_epoch_ = 0;
  int sessions_ = 0;
};

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
  Join(1, "a", "r1");
  Step(event::Joined{2, {"a", "r1", 0, 1, "host", 1, "host", "test", {}}});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(1));
  EXPECT_THAT(To<action::SendWelcome>(), ElementsAre(2));
  EXPECT_THAT(Snapshot().members, SizeIs(1));
}

TEST_F(CoordinatorTest, ANewProcessReplacesOneThatWasSilentForHalfTheTimeout) {
  Join(1, "a", "r1");
  now_ += absl::Milliseconds(1600);
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
  Step(event::ContentChecked{5, absl::OkStatus(), DigestOf(5)});
  EXPECT_TRUE(Answer().ok());
  EXPECT_TRUE(All<action::PublishDone>()[0].report.already_committed);
  EXPECT_THAT(All<action::PublishDone>()[0].report.replicas, SizeIs(1));
  Publish(5);
  Step(event::ContentChecked{5, absl::OkStatus(), DigestOf(6)});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(Answer()), HasSubstr("publish this as version 6 or higher"));
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
  EXPECT_EQ(coordinator_->NextDeadline(), now_ + options_.heartbeat_timeout);
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
  Publish(41);
  EXPECT_THAT(All<action::CheckContent>(), SizeIs(1));
  Step(event::ContentChecked{41, absl::OkStatus(), DigestOf(41)});
  EXPECT_TRUE(Answer().ok());
  Publish(40);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  Commit(42, {1});
}

TEST_F(CoordinatorTest, ANewcomerThatServesALaterVersionOvertakesAnUndecidedPublish) {
  Sinks(1);
  Publish(3);
  Join(2, "b", "r2", 0, 1, 9);
  EXPECT_EQ(Answer().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Text(Answer()), HasSubstr("b (replica r2, rank 0) joined and serves version 9"));
  EXPECT_THAT(To<action::SendAbort>(), ElementsAre(1));
}

// ---- faults of a round

TEST_F(CoordinatorTest, ALossBeforeReleaseGoesOnEncodingForTheSurvivorsInANewEpoch) {
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

TEST_F(CoordinatorTest, ALossAfterReleaseSendsTheRetainedCopyAndTheReportTellsWhoIsOut) {
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

TEST_F(CoordinatorTest, ASourceThatDoesNotRetainCannotSendAgain) {
  options_.source_retains = false;
  Sinks(2);
  Publish(1);
  Release(1);
  Step(event::Lost{2, "connection reset"});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Text(Answer()), HasSubstr("does not retain"));
}

TEST_F(CoordinatorTest, MessagesOfAFormerEpochChangeNothing) {
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

TEST_F(CoordinatorTest, OnlyThatASinkIsTornIsBelievedFromAnyEpoch) {
  options_.source_retains = false;
  Sinks(1);
  Commit(1, {1});
  Step(event::Failed{1, epoch_ - 1, 1, MemberPhase::kReceive, absl::AbortedError("x"), true, -1});
  EXPECT_EQ(Snapshot().members[0].state, "torn");
  EXPECT_EQ(Snapshot().state, SyncState::kDegraded);
  Commit(2, {1});
  EXPECT_EQ(Snapshot().members[0].state, "ready");
}

TEST_F(CoordinatorTest, MembersThatFallSilentTogetherAreNotCountedForADecision) {
  options_.min_replicas = 2;
  Sinks(3);
  Publish(1);
  Release(1);
  Staged(1, 1);
  Staged(2, 1);
  Pass(options_.heartbeat_timeout, {2, 3});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(2, 3));
  EXPECT_THAT(To<action::SendCommit>(), IsEmpty());
  EXPECT_EQ(Answer().code(), absl::StatusCode::kUnavailable);
}

TEST_F(CoordinatorTest, ASilentMemberIsLostAfterTheTimeoutAndThePublishIsUnblocked) {
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

TEST_F(CoordinatorTest, TheCoordinatorsOwnPauseIsNotTheMembersSilence) {
  Sinks(2);
  now_ += absl::Seconds(60);
  EXPECT_THAT(Step(event::Tick{}), IsEmpty());
  EXPECT_EQ(coordinator_->NextDeadline(), now_ + options_.heartbeat_timeout / 2);
  Step(event::HeartbeatSeen{1});
  now_ += absl::Seconds(60);
  Step(event::Tick{});
  EXPECT_THAT(To<action::Disconnect>(), ElementsAre(2));  // forgiven once, not for ever
}

TEST_F(CoordinatorTest, ABrokenSessionIsTriedThreeTimesAndNotMore) {
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

TEST_F(CoordinatorTest, AVersionLostWhileEncodingFailsEvenIfAnEarlierEpochFoundItOut) {
  Sinks(2);
  Publish(1);
  const uint64_t former = epoch_;
  Step(event::Lost{2, "connection reset"});
  Step(event::SourceFailed{former, 1, absl::DataLossError("NaN in model.x at 17"), true});
  EXPECT_EQ(Answer().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Text(Answer()), HasSubstr("NaN in model.x at 17"));
  EXPECT_EQ(Snapshot().committed.version, 0u);
}

TEST_F(CoordinatorTest, AReleaseOfAnAbortedPublishIsNotTakenForTheNextOne) {
  Sinks(1);
  Publish(1);
  const uint64_t former = epoch_;
  Step(event::Failed{1, epoch_, 1, MemberPhase::kReceive, absl::InternalError("x"), false, -1});
  Publish(1);
  EXPECT_THAT(Step(event::SourceReleased{1, DigestOf(9), absl::ZeroDuration(), former}), IsEmpty());
  Release(1);
  EXPECT_THAT(All<action::PublishReleased>(), SizeIs(1));
}

TEST_F(CoordinatorTest, AQuorumCommitsWithoutTheLaggardWhichIsFenced) {
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

TEST_F(CoordinatorTest, TheCatalogsEndAbortsAVersionThatIsNotReleasedAndNoOther) {
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

TEST_F(CoordinatorTest, ASinkThatStillAppliesIsNotAskedAgainUntilItAnswers) {
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
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  Release(2);
  Step(event::Applied{1, former, 1, DigestOf(1), {}});
  EXPECT_EQ(Snapshot().members[0].serving, Content(1));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));  // now it catches up
}

// ---- catch-up

TEST_F(CoordinatorTest, ALateJoinerCatchesUpFromTheRetainedCopyWithoutTheOthers) {
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

TEST_F(CoordinatorTest, ATornReplicaCatchesUpEvenIfItHadTheVersion) {
  Sinks(1);
  Commit(1, {1});
  Step(event::ReadyChanged{1, true, "", kPlan, "engine", Content(1), true});
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorTest, APublishCancelsACatchUpAndTakesItsMembersIn) {
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

TEST_F(CoordinatorTest, APublishWaitsForACatchUpThatIsJustBeingAppliedButNotLong) {
  Sinks(1);
  Commit(1, {1});
  Join(2, "b", "r2");
  Ready(2);
  Staged(2, 1);
  beat_epoch_ = epoch_;
  Publish(2);
  EXPECT_THAT(To<action::SendBegin>(), IsEmpty());
  EXPECT_EQ(coordinator_->NextDeadline(), now_ + absl::Seconds(1));
  Pass(absl::Seconds(1));
  EXPECT_THAT(To<action::SendBegin>(), ElementsAre(1));
}

TEST_F(CoordinatorTest, AFailedCatchUpIsRepeatedLaterAndLaterAndHoldsUpNobodyElse) {
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

TEST_F(CoordinatorTest, NothingIsCaughtUpOnceTheRetainedCopyWasOverwritten) {
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
  EXPECT_EQ(Snapshot().reason, "1 replicas serve version 1");
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
