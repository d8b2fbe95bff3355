#include "server/backend/host/work_table.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace wsync::host {
namespace {

TEST(WorkTableTest, EveryRowIsInExactlyOneSegmentAndCutsFallOnUnits) {
  std::mt19937 random(3);
  WorkTable table;
  std::vector<std::vector<int64_t>> rows(20);  // by bucket, then thing
  for (auto& bucket : rows) {
    for (int64_t thing = 0; thing < 30; ++thing) {
      bucket.push_back(1 + static_cast<int64_t>(random() % 2000));
      table.AddRows(thing, bucket.back(), 1 + static_cast<int64_t>(random() % 3000), 128);
    }
    table.EndBucket();
  }
  for (size_t k = 0; k < rows.size(); ++k) {
    std::vector<int64_t> next(rows[k].size());
    for (int64_t item = 0; item < table.Items(k); ++item) {
      EXPECT_FALSE(table.Item(k, item).empty());
      for (const Segment& segment : table.Item(k, item)) {
        EXPECT_EQ(segment.row, next[segment.index]);
        EXPECT_EQ(segment.row % 128, 0);
        next[segment.index] += segment.rows;
      }
    }
    EXPECT_EQ(next, rows[k]);
  }
}

TEST(WorkTableTest, ManySmallThingsMakeAsManyItemsAsOneLargeOneOfTheirSize) {
  constexpr int64_t kBlockBytes = 128 * 256;
  WorkTable small, large;
  for (int64_t i = 0; i < 40'000; ++i) small.AddRows(i, 128, kBlockBytes / 128, 128);
  small.EndBucket();
  large.AddRows(0, 128 * 40'000, kBlockBytes / 128, 128);
  large.EndBucket();
  EXPECT_EQ(small.Items(0), large.Items(0));
  EXPECT_EQ(small.Items(0), 40'000 * kBlockBytes / kItemBytes);
}

TEST(WorkTableTest, AUnitLargerThanAnItemIsNotCut) {
  WorkTable table;
  table.AddRows(0, 256, 3 * kItemBytes, 128);
  table.EndBucket();
  ASSERT_EQ(table.Items(0), 2);
  EXPECT_EQ(table.Item(0, 1)[0].rows, 128);
}

TEST(WorkTableTest, ABucketMayHaveNoItems) {
  WorkTable table;
  table.EndBucket();
  table.AddRows(7, 5, 10, 1);
  table.EndBucket();
  EXPECT_EQ(table.Items(0), 0);
  ASSERT_EQ(table.Items(1), 1);
  EXPECT_EQ(table.Item(1, 0)[0].index, 7);
}

}  // namespace
}  // namespace wsync::host
