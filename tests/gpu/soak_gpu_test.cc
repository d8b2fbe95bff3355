// Many versions between two GPUs with agents that die in the middle: nothing grows, nothing tears.
// WSYNC_SOAK_SYNCS says how many (default 120; the long run has 1,000), WSYNC_FAULT_SEED who dies and when.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <future>
#include <random>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "tests/faults/environment.h"
#include "tests/faults/flatness.h"
#include "tests/gpu/gpu_faults.h"

namespace wsync::gpu {
namespace {

using faults::FromEnvironment;

constexpr int64_t kKillEvery = 50;
constexpr absl::Duration kHardLimit = absl::Seconds(10);

class GpuSoak : public GpuFaults {
 protected:
  GpuSoak() : GpuFaults(/*layers=*/2) {}  // the host encodes every version as well
  // Processes, and what is in use on both GPUs, by whomever.
  void LookAt(faults::Flatness& flatness, int64_t version) {
    flatness.Look("wsync-trainer", cluster_->trainer_pid(), version);
    flatness.Look("wsync-rollout", cluster_->rollout_pid(0), version);
    // This process compares copies of the weights: where the heap puts them differs.
    const auto copies = static_cast<int64_t>(2 * Expected().size());
    flatness.Look("training process and engine", getpid(), version, faults::Flatness::kSettledSlack + copies);
    for (const int device : {0, 1}) {
      const auto facts = cuda::FactsOf(device);
      ASSERT_TRUE(facts.ok()) << facts.status();
      flatness.LookAtBytes(absl::StrCat("GPU ", device), facts->total_bytes - facts->free_bytes, version);
    }
  }
};

TEST_F(GpuSoak, NothingGrowsAndNothingTears) {
  const int64_t versions = FromEnvironment("WSYNC_SOAK_SYNCS", 120);
  std::mt19937_64 random(static_cast<uint64_t>(FromEnvironment("WSYNC_FAULT_SEED", 1)));
  ASSERT_NO_FATAL_FAILURE(StartInSync());
  faults::Flatness flatness(std::max<int64_t>(50, versions / 10));  // half of the last fifth in the long run
  int64_t committed = 0, failed = 0, kills = 0;
  absl::Duration longest;
  const absl::Time begun = MonotonicNow();
  Bytes before;
  for (int64_t v = 1; v <= versions && !HasFailure(); ++v) {
    const auto version = static_cast<uint64_t>(v);
    ASSERT_NO_FATAL_FAILURE(Train(static_cast<uint32_t>(v)));
    const Bytes expected = Expected();
    // The last fifth is left in peace: what grows slowly shows in processes that live long.
    if (v % kKillEvery != 0 || v > versions * 4 / 5) {
      const auto report = Publish(version);
      ASSERT_TRUE(report.ok()) << "version " << v << ": " << report.status();
      ASSERT_TRUE(engine_->WaitForVersion(version)) << "version " << v;
      ASSERT_TRUE(engine_->Memory() == expected) << "version " << v;
      ++committed;
    } else {
      ++kills;
      const absl::Time begin = MonotonicNow();
      auto answer = std::async(std::launch::async, [this, version] { return Publish(version); });
      usleep(static_cast<useconds_t>(random() % 6000));  // a version takes a few milliseconds
      ASSERT_NO_FATAL_FAILURE(StartAgain(random() % 2 == 0 ? Side::kTrainer : Side::kRollout));
      const auto report = answer.get();
      longest = std::max(longest, MonotonicNow() - begin);
      EXPECT_LE(MonotonicNow() - begin, kHardLimit) << report.status();
      (report.ok() ? committed : failed) += 1;
      ASSERT_NO_FATAL_FAILURE(WaitUntilSettled());
      // Late joiners were caught up by then, or will be with the next version; what is served is whole.
      if (engine_->version() != 0) {
        const Bytes held = engine_->Memory();
        EXPECT_TRUE(held == before || held == expected) << "torn at version " << v;
      }
    }
    before = expected;
    if (v % 10 == 0) LookAt(flatness, v);
  }
  flatness.Print();
  std::printf(
      "SOAK|%lld versions|%lld kills, %lld committed, %lld failed, longest publish with a kill %.2f s, %.1f s\n",
      static_cast<long long>(versions), static_cast<long long>(kills), static_cast<long long>(committed),
      static_cast<long long>(failed), absl::ToDoubleSeconds(longest), absl::ToDoubleSeconds(MonotonicNow() - begun));
}

}  // namespace
}  // namespace wsync::gpu
