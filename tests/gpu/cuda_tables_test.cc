// The tables behind the GPU kernels, which are built on the host: no GPU needed.
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/items_cuda.h"
#include "kernels/load_cuda.h"
#include "kernels/quantize_cuda.h"

namespace wsync::cuda {
namespace {

const std::byte* Address(uint64_t address) { return reinterpret_cast<const std::byte*>(address); }

EncodePiece PieceOf(Dtype dtype, int64_t rows, int64_t cols, Recipe recipe, uint64_t source = 4096) {
  return {.source = Address(source), .dtype = dtype, .recipe = recipe, .rows = rows, .cols = cols};
}

constexpr Recipe kRaw = {};
constexpr Recipe kBlock = {.fp8 = true, .granularity = Granularity::kBlock};
constexpr Recipe kChannel = {.fp8 = true, .granularity = Granularity::kChannel};
constexpr Recipe kTensor = {.fp8 = true, .granularity = Granularity::kTensor};

TEST(EncodeTableTest, PutsEveryPieceOnTheFastestPathThatIsRight) {
  const std::vector<std::pair<EncodePiece, EncodePath>> cases = {
      {PieceOf(Dtype::kBF16, 256, 512, kBlock), EncodePath::kTile},
      {PieceOf(Dtype::kF16, 200, 520, kTensor), EncodePath::kTile},
      {PieceOf(Dtype::kBF16, 256, 512, kBlock, 4104), EncodePath::kSlowFp8},
      {PieceOf(Dtype::kBF16, 256, 513, kBlock), EncodePath::kSlowFp8},
      {PieceOf(Dtype::kF32, 256, 512, kBlock), EncodePath::kSlowFp8},
      {PieceOf(Dtype::kBF16, 256, 512, kChannel), EncodePath::kRows},
      {PieceOf(Dtype::kBF16, 256, 16392, kChannel), EncodePath::kSlowFp8},
      {PieceOf(Dtype::kF32, 4, 7, kRaw), EncodePath::kSlowRaw},
      {PieceOf(Dtype::kF32, 1, 7, kRaw), EncodePath::kRaw},
      {PieceOf(Dtype::kF32, 4, 8, kRaw), EncodePath::kRaw},
      {PieceOf(Dtype::kF32, 4, 8, kRaw, 4100), EncodePath::kSlowRaw},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    const EncodeTable table = BuildEncodeTable({&cases[i].first, 1}, std::vector<EncodeBucket>{{0, 1, 0}});
    EXPECT_EQ(table.records[0].kind.path, cases[i].second) << i;
  }
}

// With 80 KiB everywhere one block had room where a multiprocessor has 100 KiB (compute capability 8.9 and 12).
TEST(PaceTest, BesideATransferTwoBlocksFitOnEveryMultiprocessorAndNoThird) {
  constexpr int64_t kKibi = 1024;
  constexpr int64_t kOwn = 2 * kKibi;  // what the system and the kernel itself take for a block, at most
  for (const int64_t per_multiprocessor : {100 * kKibi, 164 * kKibi, 228 * kKibi}) {
    const int64_t bytes = SlowingBytes(per_multiprocessor, per_multiprocessor - kKibi - kOwn);
    EXPECT_LE(2 * (bytes + kOwn), per_multiprocessor);
    EXPECT_GT(3 * bytes, per_multiprocessor);
  }
  EXPECT_EQ(SlowingBytes(228 * kKibi, 227 * kKibi), 80 * kKibi);
}

TEST(EncodeTableTest, OddItemsComeLastInEveryBucket) {
  const std::vector<EncodePiece> pieces = {
      PieceOf(Dtype::kBF16, 300, 512, kBlock),     // 3 x 4 tiles
      PieceOf(Dtype::kBF16, 300, 511, kBlock),     // 3 x 4 odd tiles
      PieceOf(Dtype::kBF16, 1, 20001, kRaw),       // 40,002 bytes: 2 items and a tail
      PieceOf(Dtype::kBF16, 1, 3, kRaw),           // nothing but a tail
      PieceOf(Dtype::kBF16, 100, 2048, kChannel),  // 8 rows per item
      PieceOf(Dtype::kF16, 128, 1024, kTensor),    // 8 tiles, and 2 items for its amax
  };
  const EncodeTable table = BuildEncodeTable(pieces, std::vector<EncodeBucket>{{0, 4, 0}, {4, 6, 128}});
  EXPECT_EQ(table.items, (std::vector<uint32_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2,  // tiles, raw
                                                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3,  // odd
                                                5, 5, 5, 5, 5, 5, 5, 5,                    // tiles, raw
                                                4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4,     // odd
                                                5, 5}));                                   // amax
  ASSERT_EQ(table.buckets.size(), 2);
  EXPECT_EQ(table.buckets[0].odd_begin, 14);
  EXPECT_EQ(table.buckets[0].item_end, 28);
  EXPECT_EQ(table.buckets[1].item_begin, 28);
  EXPECT_EQ(table.buckets[1].odd_begin, 36);
  EXPECT_EQ(table.buckets[1].item_end, 49);
  EXPECT_EQ(table.amax_item_begin, 49);
  EXPECT_EQ(table.records[1].first_item, 14);
  EXPECT_EQ(table.records[4].first_item, 36);
  EXPECT_EQ(table.records[5].first_item, 28);
  EXPECT_EQ(table.records[5].first_amax_item, 49);
  EXPECT_EQ(table.results_bytes(), 6 * 16);
  EXPECT_EQ(table.state_bytes(), 6 * 16 + 4);
}

// What the kernel relies on to divide by multiplying: the quotient is right or one short.
TEST(EncodeTableTest, TheInverseOfTilesAcrossIsNearEnough) {
  for (int64_t tiles : {1, 2, 3, 5, 7, 16, 28, 148, 1187, 65535, 65537}) {
    const EncodePiece piece = PieceOf(Dtype::kBF16, 128, 128 * tiles, kBlock);
    const EncodeTable table = BuildEncodeTable({&piece, 1}, std::vector<EncodeBucket>{{0, 1, 0}});
    const EncodeRecord& record = table.records[0];
    ASSERT_EQ(record.tiles_across, tiles);
    for (uint64_t row : {0, 1, 2, 1000, 65000}) {
      for (uint64_t index : {row * record.tiles_across, (row + 1) * record.tiles_across - 1}) {
        if (index > UINT32_MAX) continue;
        const uint64_t quotient = index * record.across_inverse >> 32;
        EXPECT_TRUE(quotient == row || quotient + 1 == row) << tiles << ": " << index;
      }
    }
  }
}

TEST(EncodeTableTest, AnUntouchedEntryMeansThatAllNumbersAreFinite) {
  EXPECT_EQ(FirstNonFiniteOf(0), kNoIndex);
  EXPECT_EQ(FirstNonFiniteOf(~uint64_t{0}), 0);
  EXPECT_EQ(FirstNonFiniteOf(~uint64_t{12345}), 12345);
}

TEST(CheckTableTest, SharesAPiecesScalesAmongItsItems) {
  const CheckPiece pieces[] = {{.rows = 1000, .row_bytes = 1024, .scale_offset = 1 << 20, .scale_count = 1000},
                               {.data_offset = 2 << 20, .rows = 3, .row_bytes = 5}};
  const CheckTable table = BuildCheckTable(pieces, std::vector<CheckBucket>{{0, 2, 0}});
  EXPECT_EQ(table.items.size(), 32 + 1);  // 1,024,000 bytes in 32 KiB items
  EXPECT_EQ(table.records[0].scales_per_item, 32);
  EXPECT_TRUE(table.records[0].is_flat);
  EXPECT_FALSE(table.records[1].is_flat);
  EXPECT_EQ(table.mismatches_offset(0), 16);
  EXPECT_EQ(table.state_bytes(), 16 + 128);
}

TEST(CopyTableTest, ItemsCoverEveryByteOnceAtTheWidestUnit) {
  std::byte* const dest = const_cast<std::byte*>(Address(1 << 20));
  const std::vector<Copy> copies = {
      {.source_offset = 128, .source_pitch = 4096, .dest = dest, .dest_pitch = 4096, .rows = 100, .row_bytes = 4096},
      {.source_offset = 128, .source_pitch = 4096, .dest = dest, .dest_pitch = 8192, .rows = 100, .row_bytes = 4096},
      {.source_offset = 128, .source_pitch = 1, .dest = dest + 4, .dest_pitch = 1, .rows = 1, .row_bytes = 100},
      {.source_offset = 0, .source_pitch = 1, .dest = dest, .dest_pitch = 1, .rows = 1, .row_bytes = 70001},
      {.source_offset = 0, .source_pitch = 70002, .dest = dest, .dest_pitch = 70002, .rows = 2, .row_bytes = 70000}};
  const CopyTable table = BuildCopyTable(copies, std::vector<int64_t>{0, 2, 5}, std::vector<int64_t>{0, 1 << 20});
  std::vector<uint32_t> units, items(table.records.size());
  for (const CopyRecord& record : table.records) units.push_back(record.unit_bytes);
  for (uint32_t record : table.items) ++items[record];
  EXPECT_EQ(units, (std::vector<uint32_t>{16, 16, 4, 16, 1, 2}));  // the fourth copy is split
  EXPECT_EQ(items, (std::vector<uint32_t>{13, 13, 1, 3, 1, 6}));
  EXPECT_EQ(table.item_begin, (std::vector<uint32_t>{0, 26, 37}));
  EXPECT_EQ(table.records[0].rows, 1);  // contiguous on both sides
  EXPECT_EQ(table.records[3].row_bytes + table.records[4].row_bytes, 70001);
  EXPECT_EQ(table.records[2].source_offset, (1 << 20) + 128);
}

}  // namespace
}  // namespace wsync::cuda
