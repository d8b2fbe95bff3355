// Many seeded runs of the commit protocol under faults. WSYNC_SIM_SEEDS sets how many, WSYNC_SIM_SEED runs one alone.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/core/simulation.h"

namespace wsync::sim {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

constexpr size_t kHistoryShown = 30000;  // characters before the violation

std::string Failure(uint64_t seed, const std::string& violation, bool liar = false) {
  const Result again = Simulate({.seed = seed, .liar = liar, .keep_history = true});
  const size_t begin = again.history.size() > kHistoryShown ? again.history.size() - kHistoryShown : 0;
  return absl::StrCat("seed ", seed, ": ", violation, "\n", again.history.substr(begin),
                      "run it alone with WSYNC_SIM_SEED=", seed);
}

TEST(CoordinatorSimulation, NoSeedBreaksARule) {
  const uint64_t only = FromEnvironment("WSYNC_SIM_SEED", 0);
  const uint64_t seeds = only != 0 ? 1 : FromEnvironment("WSYNC_SIM_SEEDS", 2000);
  Counts counts;
  for (uint64_t i = 0; i < seeds; ++i) {
    const uint64_t seed = only != 0 ? only : i + 1;
    const Result result = Simulate({.seed = seed});
    ASSERT_EQ(result.violation, "") << Failure(seed, result.violation);
    counts += result.counts;
  }
  std::printf(
      "%llu seeds: %lld steps, %lld publishes (%lld failed, %lld repeated), %lld versions committed, %lld restarts, "
      "%lld catch-ups, %lld left out, %lld torn, %lld members lost, %lld coordinators, %lld kept sessions, %lld stale "
      "messages, %lld repeated ones, %lld hang-ups, %lld engines lost in a version, %lld of them staged, %lld begins "
      "declined\n",
      static_cast<unsigned long long>(seeds), static_cast<long long>(counts.steps),
      static_cast<long long>(counts.publishes + counts.failures), static_cast<long long>(counts.failures),
      static_cast<long long>(counts.repeats), static_cast<long long>(counts.commits),
      static_cast<long long>(counts.restarts), static_cast<long long>(counts.catch_ups),
      static_cast<long long>(counts.left_out), static_cast<long long>(counts.torn), static_cast<long long>(counts.lost),
      static_cast<long long>(counts.coordinator_lives), static_cast<long long>(counts.kept_sessions),
      static_cast<long long>(counts.stale_messages), static_cast<long long>(counts.repeated_messages),
      static_cast<long long>(counts.hang_ups), static_cast<long long>(counts.engines_lost),
      static_cast<long long>(counts.staged_engines), static_cast<long long>(counts.declined));
  if (seeds < 100) return;
  // Each of these happened often, else the seeds proved nothing about it.
  const int64_t often = static_cast<int64_t>(seeds) / 4;
  EXPECT_GT(counts.commits, 10 * static_cast<int64_t>(seeds));
  EXPECT_GT(counts.failures, often);
  EXPECT_GT(counts.repeats, often);
  EXPECT_GT(counts.restarts, often);
  EXPECT_GT(counts.catch_ups, often);
  EXPECT_GT(counts.left_out, often);
  EXPECT_GT(counts.torn, often);
  EXPECT_GT(counts.lost, often);
  EXPECT_GT(counts.coordinator_lives, static_cast<int64_t>(seeds) + often);
  EXPECT_GT(counts.kept_sessions, static_cast<int64_t>(seeds));
  EXPECT_GT(counts.stale_messages, often);
  EXPECT_GT(counts.repeated_messages, often);
  EXPECT_GT(counts.hang_ups, often);
  EXPECT_GT(counts.engines_lost, often);
  EXPECT_GT(counts.staged_engines, static_cast<int64_t>(seeds) / 100);
  EXPECT_GT(counts.declined, static_cast<int64_t>(seeds) / 100);
  EXPECT_TRUE(seeds < 45'000 || counts.commits >= 1'000'000) << "what tests/faults/long.sh is to show";
}

// Whatever one member says or does not do, the same way each time.
TEST(CoordinatorSimulation, ALiarCostsTwoVersionsAndNobodyElseIsFenced) {
  const uint64_t only = FromEnvironment("WSYNC_SIM_SEED", 0);
  const uint64_t seeds = only != 0 ? 1 : FromEnvironment("WSYNC_SIM_SEEDS", 2000) / 2;
  Counts counts;
  for (uint64_t i = 0; i < seeds; ++i) {
    const uint64_t seed = only != 0 ? only : i + 1;
    const Result result = Simulate({.seed = seed, .liar = true});
    ASSERT_EQ(result.violation, "") << Failure(seed, result.violation, true);
    counts += result.counts;
  }
  std::printf("%llu liars: %lld versions committed, %lld publishes lost to them or held up, %lld fenced at the end\n",
              static_cast<unsigned long long>(seeds), static_cast<long long>(counts.commits),
              static_cast<long long>(counts.cost), static_cast<long long>(counts.fenced));
  if (seeds < 100) return;
  EXPECT_GT(counts.cost, static_cast<int64_t>(seeds) / 4);
  EXPECT_GT(counts.fenced, static_cast<int64_t>(seeds) / 4);
  EXPECT_GT(counts.commits, 10 * static_cast<int64_t>(seeds));
}

TEST(CoordinatorSimulation, TheSameSeedIsTheSameRun) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Result first = Simulate({.seed = seed, .keep_history = true});
    const Result second = Simulate({.seed = seed, .keep_history = true});
    EXPECT_EQ(first.fingerprint, second.fingerprint);
    EXPECT_EQ(first.history, second.history);
    EXPECT_FALSE(first.history.empty());
  }
}

}  // namespace
}  // namespace wsync::sim
