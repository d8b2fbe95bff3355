// Many versions, one after the other, with somebody killed every fifty: nothing grows, nothing tears.
// WSYNC_FAULT_SOAK says how many (default 300; the long run has 10,000), WSYNC_FAULT_SEED who is killed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "tests/faults/flatness.h"
#include "tests/faults/group_test.h"

namespace wsync::faults {
namespace {

constexpr int kKillEvery = 50;

// Somebody dies now, in the middle of whatever is going on, and is started again.
void KillSomebody(Group& group, uint64_t who) {
  const int rollout = static_cast<int>(who % group.rollouts());
  switch (who / 2 % 3) {
    case 0:
      group.agents().KillRollout(rollout);
      ASSERT_TRUE(group.agents().StartRollout(rollout).ok());
      return;
    case 1:
      ASSERT_TRUE(group.StartEngine(rollout).ok());
      return;
    default:
      ASSERT_TRUE(group.agents().RestartTrainer().ok());
  }
}

using Soak = GroupTest;

TEST_F(Soak, NothingGrowsAndNothingTears) {
  const int64_t versions = FromEnvironment("WSYNC_FAULT_SOAK", 300);
  std::mt19937_64 random(static_cast<uint64_t>(FromEnvironment("WSYNC_FAULT_SEED", 1)));
  ASSERT_NO_FATAL_FAILURE(StartGroup());
  Group& group = *group_;
  Flatness flatness;
  int64_t committed = 1, left_out = 0, failed = 0;
  const absl::Time begun = MonotonicNow();
  for (int64_t version = 2; version <= versions && !HasFailure(); ++version) {
    // The last fifth is left in peace: what grows slowly shows in processes that live long.
    const bool kill = version % kKillEvery == 0 && version <= versions * 4 / 5;
    group.BeginPublish(static_cast<uint64_t>(version));
    if (kill) {
      usleep(static_cast<useconds_t>(random() % 60'000));
      KillSomebody(group, random());
    }
    const auto published = group.AwaitPublished(Scaled(absl::Seconds(25)));
    ASSERT_TRUE(published.has_value()) << "version " << version;
    committed += published->ok();
    failed += !published->ok();
    left_out += published->ok() && !published->ByAll();
    EXPECT_TRUE(kill || published->ok()) << "version " << version << ": " << published->message;
    const auto served = static_cast<uint64_t>(version);
    for (int i = 0; i < group.rollouts(); ++i) {
      const absl::Status status = kill ? group.CheckContent(i, {0, served - 1, served}, true)
                                       : group.AwaitVersion(i, served, Scaled(absl::Seconds(10)));
      EXPECT_TRUE(status.ok()) << "version " << version << ": " << status;
    }
    if (kill) AwaitReady();
    ASSERT_FALSE(HasFatalFailure()) << "version " << version;
    if (version % 10 != 0) continue;
    flatness.Look("wsync-trainer", group.agents().trainer_pid(), version);
    for (int i = 0; i < group.rollouts(); ++i) {
      flatness.Look(absl::StrCat("wsync-rollout ", i), group.agents().rollout_pid(i), version);
      flatness.Look(absl::StrCat("engine ", i), group.engine(i).pid(), version);
    }
    flatness.Look("training process", group.trainer().pid(), version);
  }
  flatness.Print();
  std::printf("SOAK|%lld versions|%lld committed, %lld of them without somebody, %lld failed, %.1f s\n",
              static_cast<long long>(versions), static_cast<long long>(committed), static_cast<long long>(left_out),
              static_cast<long long>(failed), absl::ToDoubleSeconds(MonotonicNow() - begun));
}

}  // namespace
}  // namespace wsync::faults
