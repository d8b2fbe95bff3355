#include "server/core/layer_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "server/core/layers.h"
#include "tests/core/plan_testing.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Told(const LayerSchedule& schedule, const Plan& plan) {
  std::vector<std::string> told;
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    for (const LayerVisit& visit : schedule.VisitsOf(static_cast<int64_t>(k))) {
      told.push_back(
          absl::StrCat(k, " ", schedule.name(visit.layer), visit.first ? " first" : "", visit.last ? " last" : ""));
    }
  }
  return told;
}

std::shared_ptr<const Plan> RawPlan(std::vector<Tensor> tensors) {
  RecipeRules rules;
  rules.fp8 = false;
  return MakePlan(std::move(tensors), rules, kMinBucketBytes);
}

TEST(LayerScheduleTest, ABucketIsVisitedOncePerLayerInTheOrderOfFirstBytes) {
  // 64 KiB buckets of 25.6 KB units: embed + 1 unit | 2 | 1 + 1 | 2 | 1 + head.
  const auto plan = RawPlan({{"embed.weight", Dtype::kU8, {128, 300}},
                             {"layers.0.a.weight", Dtype::kU8, {512, 200}},
                             {"layers.1.a.weight", Dtype::kU8, {512, 200}},
                             {"head.weight", Dtype::kU8, {128, 10}}});
  const LayerSchedule schedule(*plan);
  EXPECT_THAT(Told(schedule, *plan), ElementsAre("0  first", "0 layers.0 first", "1 layers.0", "2 layers.0 last",
                                                 "2 layers.1 first", "3 layers.1", "4 layers.1 last", "4  last"));
  EXPECT_EQ(schedule.most_open(), 1);
  EXPECT_EQ(schedule.largest_bytes(), 512 * 200);
  EXPECT_TRUE(schedule.CheckWindow(1).ok());
}

TEST(LayerScheduleTest, SmallLayersOfOneBucketAreVisitedOneAfterTheOtherThoughTheirTensorsAreMixed) {
  const auto plan = RawPlan({{"layers.0.a", Dtype::kU8, {100}},
                             {"layers.0.b", Dtype::kU8, {100}},
                             {"norm", Dtype::kU8, {100}},
                             {"layers.1.a", Dtype::kU8, {100}},
                             {"layers.0.c", Dtype::kU8, {100}}});
  const LayerSchedule schedule(*plan);
  EXPECT_THAT(Told(schedule, *plan), ElementsAre("0 layers.0 first last", "0  first last", "0 layers.1 first last"));
  EXPECT_EQ(schedule.most_open(), 1);
  EXPECT_THAT(schedule.outputs(0), ElementsAre(0, 1, 4));
  EXPECT_EQ(schedule.bytes(0), 300);
}

TEST(LayerScheduleTest, AnInterleavedCatalogNeedsAWindowAsWideAsItsOpenLayersAndTheErrorNamesThem) {
  std::vector<Tensor> tensors;  // all of one kind, then all of the next: every layer is open until the second kind
  for (const char* kind : {"up", "down"}) {
    for (int layer = 0; layer < 3; ++layer) {
      tensors.push_back({absl::StrCat("layers.", layer, ".", kind), Dtype::kU8, {256, 256}});
    }
  }
  const LayerSchedule schedule(*RawPlan(tensors));
  EXPECT_EQ(schedule.most_open(), 3);
  EXPECT_TRUE(schedule.CheckWindow(3).ok());
  const absl::Status status = schedule.CheckWindow(2);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("layer_window 2"), HasSubstr("layers.0, layers.1, layers.2"),
                    HasSubstr("layer_window 3 or more")));
}

RC_GTEST_PROP(LayerScheduleTest, EveryLayerBeginsOnceEndsOnceAndHasAllItsBytesAndOutputs, ()) {
  std::vector<Tensor> tensors;
  const int64_t count = Uniform(1, 12);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t layer = Uniform(0, 5);
    tensors.push_back({layer == 0 ? absl::StrCat("rest.", i) : absl::StrCat("layers.", layer, ".t", i, ".weight"),
                       Dtype::kBF16,
                       {RandomDim(600), RandomDim(300)}});
  }
  const auto plan = MakePlan(tensors, RecipeRules{}, kMinBucketBytes);
  const LayerSchedule schedule(*plan);
  const LayerMap map(*plan);
  RC_ASSERT(schedule.layers() == static_cast<int64_t>(map.names().size()));
  std::map<int64_t, int> firsts, lasts;
  std::set<int64_t> open;
  for (size_t k = 0; k < plan->buckets().size(); ++k) {
    std::set<int64_t> in_bucket;
    for (const LayerVisit& visit : schedule.VisitsOf(static_cast<int64_t>(k))) {
      RC_ASSERT(in_bucket.insert(visit.layer).second);
      firsts[visit.layer] += visit.first;
      if (!schedule.stays(visit.layer)) open.insert(visit.layer);
      RC_ASSERT(static_cast<int64_t>(open.size()) <= schedule.most_open());
      lasts[visit.layer] += visit.last;
      if (visit.last) open.erase(visit.layer);
    }
    std::set<int64_t> expected;
    for (const LayerPart& part : map.PartsOf(static_cast<int64_t>(k))) expected.insert(part.layer);
    RC_ASSERT(in_bucket == expected);  // both number layers by their first byte
  }
  for (int64_t layer = 0; layer < schedule.layers(); ++layer) {
    RC_ASSERT(firsts[layer] == 1);
    RC_ASSERT(lasts[layer] == 1);
    RC_ASSERT(schedule.bytes(layer) == map.bytes()[layer]);
    for (const int64_t output : schedule.outputs(layer)) {
      RC_ASSERT(LayerOf(plan->outputs()[output].name) == schedule.name(layer));
    }
  }
}

}  // namespace
}  // namespace wsync
