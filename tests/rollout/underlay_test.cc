#include "server/rollout/underlay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "server/core/memory_estimate.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

class UnderlayTest : public ::testing::Test {
 protected:
  ScatterTable TableOf(std::vector<Destination> destinations) const {
    const auto table = BuildScatterTable(*plan_, destinations, {bytes_}, /*allow_partial=*/true);
    EXPECT_TRUE(table.ok()) << table.status();
    return table.ok() ? *table : ScatterTable();
  }
  static Destination& Tallest(std::vector<Destination>& destinations) {
    return *std::max_element(destinations.begin(), destinations.end(),
                             [](const Destination& a, const Destination& b) { return a.row_end < b.row_end; });
  }
  bool TakesEverythingAfter(const std::function<void(std::vector<Destination>&)>& change) const {
    std::vector<Destination> destinations = whole_;
    change(destinations);
    return TakesEveryByte(*plan_, TableOf(std::move(destinations)));
  }

  const std::shared_ptr<const Plan> plan_ = PlanOf(SmallCatalog(1));
  int64_t bytes_ = 0;
  const std::vector<Destination> whole_ = WholeDestinations(*plan_, &bytes_);
};

TEST_F(UnderlayTest, WholeTensorsTakeEveryByteAndAnythingLessDoesNot) {
  EXPECT_TRUE(TakesEverythingAfter([](std::vector<Destination>&) {}));
  EXPECT_FALSE(TakesEverythingAfter([](std::vector<Destination>& d) { d.pop_back(); }));
  EXPECT_FALSE(TakesEverythingAfter([](std::vector<Destination>& d) { --Tallest(d).row_end; }));
  EXPECT_FALSE(TakesEverythingAfter([](std::vector<Destination>& d) { --Tallest(d).col_end; }));
  EXPECT_FALSE(TakesEverythingAfter([](std::vector<Destination>& d) { d.clear(); }));
}

TEST_F(UnderlayTest, TensorInTwoPartsIsWhole) {
  EXPECT_TRUE(TakesEverythingAfter([](std::vector<Destination>& d) {
    Destination& upper = Tallest(d);
    ASSERT_GT(upper.row_end, 1);
    Destination lower = upper;
    upper.row_end /= 2;
    lower.row_begin = upper.row_end;
    lower.offset_bytes += upper.row_end * upper.row_pitch_bytes;
    d.push_back(lower);
  }));
}

// What is kept of a bucket comes back where it was.
TEST_F(UnderlayTest, DigestTablesAreKeptApartAndComeBackToTheirPlaces) {
  const ScatterTable table = TableOf(whole_);
  const ScatterTable kept = KeepDigestTables(*plan_, table, 1);
  EXPECT_EQ(kept.bytes, table.bytes);
  ASSERT_EQ(kept.copies.size(), table.copies.size() + plan_->buckets().size());
  const std::byte* const base = nullptr;
  const Underlay back = UnderlayOfDigestTables(*plan_, base);
  int64_t end = 0;
  for (size_t k = 0; k < plan_->buckets().size(); ++k) {
    const Bucket& bucket = plan_->buckets()[k];
    const ScatterCopy& out = kept.copies[kept.bucket_begin[k + 1] - 1];
    const ScatterCopy& in = back.table.copies[back.table.bucket_begin[k]];
    EXPECT_EQ(out.handle, 1);
    EXPECT_EQ(out.source_offset, bucket.digest_offset);
    EXPECT_EQ(out.row_bytes, 8 * (bucket.piece_end - bucket.piece_begin));
    EXPECT_GE(out.dest_offset, end);
    EXPECT_EQ(out.dest_offset % kPieceAlign, 0);
    end = out.dest_offset + out.row_bytes;
    EXPECT_EQ(back.at[k] - base, out.dest_offset);
    EXPECT_EQ(in.dest_offset, out.source_offset);
    EXPECT_EQ(in.row_bytes, out.row_bytes);
  }
  EXPECT_LE(end, BytesOfDigestTables(*plan_));
}

TEST_F(UnderlayTest, MemoryEstimatesCountWhatIsKeptInPlace) {
  for (const auto& estimate : {EstimateSink, EstimateSinkOnGpu}) {
    EXPECT_EQ(estimate(*plan_, SinkMode::kInPlace, 2).tables_bytes,
              estimate(*plan_, SinkMode::kStaged, 2).tables_bytes + BytesOfDigestTables(*plan_));
  }
}

}  // namespace
}  // namespace wsync
