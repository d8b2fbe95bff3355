// A coordinator under test: feeds it events, keeps what it asked for, passes time.
#ifndef WSYNC_TESTS_CORE_COORDINATOR_TESTING_H_
#define WSYNC_TESTS_CORE_COORDINATOR_TESTING_H_

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/core/coordinator.h"

namespace wsync {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

inline constexpr Hash128 kPlan{10, 1};
inline constexpr Hash128 kOtherPlan{10, 2};
inline Hash128 DigestOf(uint64_t version) { return {100, version}; }
inline ServedVersion Content(uint64_t version) { return {version, version == 0 ? Hash128{} : DigestOf(version)}; }
inline std::string Text(const absl::Status& status) { return std::string(status.message()); }

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
  uint64_t CheckEpoch() const {
    const auto checks = All<action::CheckContent>();
    EXPECT_THAT(checks, SizeIs(1));
    return checks.empty() ? 0 : checks[0].epoch;
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

}  // namespace wsync

#endif  // WSYNC_TESTS_CORE_COORDINATOR_TESTING_H_
