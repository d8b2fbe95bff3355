#include "server/core/memory_estimate.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include "client/checkpoint/model_shapes.h"
#include "tests/core/plan_testing.h"

namespace wsync {
namespace {

int64_t HeapInUse() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

std::shared_ptr<const Plan> PlanOf(std::string_view model) {
  return MakePlan(*ModelTensors(model), {}, int64_t{16} << 20);
}

TEST(MemoryEstimate, CountsWhatEachModeKeeps) {
  const auto plan = PlanOf("qwen2.5-0.5b");
  const MemoryEstimate full = EstimateSource(*plan, SourceMode::kFull, 3);
  EXPECT_EQ(full.image_bytes, plan->image_bytes());
  EXPECT_EQ(full.ring_bytes, 0);
  const MemoryEstimate ring = EstimateSource(*plan, SourceMode::kRing, 3);
  EXPECT_EQ(ring.image_bytes, 0);
  EXPECT_EQ(ring.ring_bytes, 3 * plan->max_bucket_bytes());
  EXPECT_EQ(EstimateSink(*plan, SinkMode::kStaged, 3).image_bytes, plan->image_bytes());
  EXPECT_EQ(EstimateSink(*plan, SinkMode::kInPlace, 2).ring_bytes, 2 * plan->max_bucket_bytes());
  for (const MemoryEstimate& e : {full, ring}) {
    EXPECT_EQ(e.total, e.image_bytes + e.ring_bytes + e.tables_bytes + e.process_bytes);
  }
}

TEST(MemoryEstimate, NeverCountsMoreSlotsThanBuckets) {
  const auto plan = MakePlan({{"a.weight", Dtype::kBF16, {8, 8}}}, {}, kMinBucketBytes);
  EXPECT_EQ(EstimateSource(*plan, SourceMode::kRing, 4).ring_bytes, plan->max_bucket_bytes());
}

TEST(MemoryEstimate, TablesMatchTheHeapWithinATenth) {
  const int64_t before = HeapInUse();
  if (before == 0) GTEST_SKIP() << "the allocator does not account for its heap (sanitizers)";
  for (const char* model : {"qwen3-30b-a3b", "deepseek-v3"}) {
    const int64_t start = HeapInUse();
    const auto plan = PlanOf(model);
    const auto taken = static_cast<double>(HeapInUse() - start);
    EXPECT_NEAR(static_cast<double>(PlanTableBytes(*plan)), taken, 0.1 * taken) << model;
  }
}

}  // namespace
}  // namespace wsync
