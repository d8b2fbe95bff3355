#include "server/core/memory_estimate.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include "client/checkpoint/model_shapes.h"
#include "server/core/ring.h"
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
  EXPECT_EQ(ring.ring_bytes, RingLayout(*plan, 3).bytes());
  EXPECT_EQ(EstimateSink(*plan, SinkMode::kStaged, 3).image_bytes, plan->image_bytes());
  EXPECT_EQ(EstimateSink(*plan, SinkMode::kInPlace, 2).ring_bytes, RingLayout(*plan, 2).bytes());
  for (const MemoryEstimate& e : {full, ring}) {
    EXPECT_EQ(e.total, e.image_bytes + e.ring_bytes + e.tables_bytes + e.process_bytes);
  }
}

TEST(MemoryEstimate, OnAGpuTheTablesAreSmallAndTheProcessIsNot) {
  const auto plan = PlanOf("qwen3-30b-a3b");
  const MemoryEstimate source = EstimateSourceOnGpu(*plan, SourceMode::kFull, 3);
  EXPECT_EQ(source.image_bytes, plan->image_bytes());
  EXPECT_GT(source.tables_bytes, 0);
  EXPECT_LT(source.tables_bytes, plan->image_bytes() / 500);
  EXPECT_GT(source.process_bytes, EstimateSource(*plan, SourceMode::kFull, 3).process_bytes);
  const MemoryEstimate sink = EstimateSinkOnGpu(*plan, SinkMode::kInPlace, 3);
  EXPECT_EQ(sink.ring_bytes, RingLayout(*plan, 3).bytes());
  EXPECT_EQ(sink.total, sink.ring_bytes + sink.tables_bytes + sink.process_bytes);
}

TEST(RingLayout, BucketsOfOneSlotFitInItAndSlotsDoNotOverlap) {
  const auto plan = PlanOf("qwen2.5-0.5b");
  const std::vector<Bucket>& buckets = plan->buckets();
  for (const int64_t slots : {1, 2, 3, 7}) {
    ASSERT_GT(static_cast<int64_t>(buckets.size()), 2 * slots);
    const RingLayout ring(*plan, slots);
    int64_t end = 0;
    for (int64_t slot = 0; slot < slots; ++slot) {
      EXPECT_EQ(ring.OffsetOf(slot), end) << "slot " << slot << " of " << slots;
      int64_t largest = 0;
      for (size_t k = slot; k < buckets.size(); k += slots) {
        EXPECT_EQ(ring.OffsetOf(static_cast<int64_t>(k)), end);
        largest = std::max(largest, buckets[k].wire_bytes);
      }
      end += largest;
    }
    EXPECT_EQ(ring.bytes(), end);
    EXPECT_GE(end, plan->max_bucket_bytes());
    EXPECT_LE(end, slots * plan->max_bucket_bytes());
  }
}

TEST(RingLayout, HasNoRoomForSlotsWithoutABucket) {
  const auto plan = MakePlan({{"a.weight", Dtype::kBF16, {8, 8}}}, {}, kMinBucketBytes);
  EXPECT_EQ(RingLayout(*plan, 4).bytes(), plan->max_bucket_bytes());
  EXPECT_EQ(RingLayout(*MakePlan({{"a.weight", Dtype::kBF16, {0, 8}}}, {}, kMinBucketBytes), 4).bytes(), 0);
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
