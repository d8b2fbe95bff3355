// The one sentence that `wsync status` begins with.
#include "server/core/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace wsync {
namespace {

MemberStatus Member(const std::string& name, const std::string& state, uint64_t version, const std::string& why = "") {
  MemberStatus member;
  member.info.name = member.info.replica = name;
  member.info.replica_size = 1;
  member.state = state;
  if (version > 0) member.serving = {version, Hash128{version, version}};
  member.last_error = why;
  return member;
}

std::string Sentence(std::vector<MemberStatus> members, int32_t min_replicas) {
  StatusSnapshot snapshot;
  snapshot.plan.emplace();
  snapshot.committed = {7, Hash128{7, 7}};
  snapshot.min_replicas = min_replicas;
  snapshot.members = std::move(members);
  Judge(snapshot);
  return std::string(SyncStateName(snapshot.state)) + ": " + snapshot.reason;
}

TEST(StatusTest, WhatComesOfAProblemIsNoOtherProblem) {
  EXPECT_EQ(Sentence({Member("a", "ready", 7), Member("b", "waiting", 0, "no engine attached")}, 2),
            "degraded: b (replica b) serves no version, committed is 7: no engine attached");
  EXPECT_EQ(Sentence({Member("a", "lost", 7, "no heartbeat for 3.0 s")}, 1),
            "degraded: a (replica a) is lost: no heartbeat for 3.0 s");
}

TEST(StatusTest, MembersWithProblemsOfTheirOwnAreCounted) {
  EXPECT_EQ(Sentence({Member("a", "torn", 0), Member("b", "waiting", 6), Member("c", "lost", 0)}, 1),
            "degraded: a (replica a) is torn (and 2 more problems)");
  EXPECT_EQ(Sentence({Member("a", "torn", 0), Member("b", "ready", 6), Member("c", "ready", 7)}, 1),
            "degraded: a (replica a) is torn (and 1 more problem)");
}

TEST(StatusTest, TooFewReplicasAreAProblemWhereNobodyElseIs) {
  EXPECT_EQ(Sentence({Member("a", "ready", 7)}, 2), "degraded: 1 of 2 needed replicas are ready");
  EXPECT_EQ(Sentence({}, 1), "degraded: 0 of 1 needed replicas are ready");
  EXPECT_EQ(Sentence({Member("a", "ready", 7)}, 1), "in sync: 1 replica serves version 7");
}

}  // namespace
}  // namespace wsync
