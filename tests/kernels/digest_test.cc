#include "kernels/digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>

#include "kernels_testing.h"

namespace wsync {
namespace {

using testing::GuardedBytes;
using testing::ReferenceDigest;

void FillRandom(GuardedBytes& bytes, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < bytes.size(); ++i) bytes.data()[i] = static_cast<std::byte>(random());
}

class DigestTest : public testing::EachSimdLevel {};
INSTANTIATE_FOR_EACH_SIMD_LEVEL(DigestTest);

TEST_P(DigestTest, OneWordIsTheMixerOfItAndItsIndex) {
  const uint64_t zero = 0;
  // fmix64(0x9E3779B97F4A7C15), computed with Python's integers from MurmurHash3's published constants.
  const uint64_t expected = 0x9CA066F1A4AB2EEAull;
  EXPECT_EQ(DigestRows(reinterpret_cast<const std::byte*>(&zero), 0, 1, 8, 8), expected);
  EXPECT_EQ(DigestMix(0, 0), expected);
}

TEST_P(DigestTest, AgreesWithItsDefinitionForEveryRowLengthAndPitch) {
  for (int64_t row_bytes = 0; row_bytes <= 150; ++row_bytes) {
    for (int64_t pitch : {row_bytes, row_bytes + 1, row_bytes + 64}) {
      GuardedBytes data(5 * pitch + row_bytes, row_bytes % 9);
      FillRandom(data, static_cast<uint32_t>(row_bytes));
      ASSERT_EQ(DigestRows(data.data(), 3, 5, row_bytes, pitch), ReferenceDigest(data.data(), 3, 5, row_bytes, pitch))
          << row_bytes << " bytes, pitch " << pitch;
    }
  }
}

TEST_P(DigestTest, CopyWritesTheRowsAndNothingElse) {
  for (int64_t row_bytes : {1, 7, 8, 63, 64, 65, 127, 128, 1000, 4096}) {
    for (int64_t out_pitch : {row_bytes, row_bytes + 3}) {
      GuardedBytes data(7 * row_bytes), out(6 * out_pitch + row_bytes, row_bytes % 5);
      FillRandom(data, 1);
      const std::vector<uint8_t> poison = out.Copy();
      const uint64_t digest = CopyAndDigestRows(data.data(), 2, 7, row_bytes, row_bytes, out.data(), out_pitch);
      EXPECT_EQ(digest, ReferenceDigest(data.data(), 2, 7, row_bytes, row_bytes));
      EXPECT_EQ(DigestRows(out.data(), 2, 7, row_bytes, out_pitch), digest);
      EXPECT_TRUE(out.GuardsIntact());
      const std::vector<uint8_t> before = data.Copy(), after = out.Copy();
      for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t row = i / out_pitch, col = i % out_pitch;
        const auto at = static_cast<size_t>(col < row_bytes ? row * row_bytes + col : i);
        ASSERT_EQ(after[static_cast<size_t>(i)], (col < row_bytes ? before : poison)[at]) << i;
      }
    }
  }
}

TEST_P(DigestTest, LargeCopiesPastTheCachesAreTheSame) {
  for (int64_t misalignment : {0, 1}) {
    for (int64_t row_bytes : {simd::kStreamMinBytes / 4, simd::kStreamMinBytes / 4 + 1}) {
      GuardedBytes data(8 * row_bytes), out(8 * row_bytes, misalignment);
      FillRandom(data, 2);
      const uint64_t digest = CopyAndDigestRows(data.data(), 0, 8, row_bytes, row_bytes, out.data(), row_bytes);
      EXPECT_EQ(digest, ReferenceDigest(data.data(), 0, 8, row_bytes, row_bytes));
      EXPECT_TRUE(out.Copy() == data.Copy());
      EXPECT_TRUE(out.GuardsIntact());
    }
  }
}

TEST_P(DigestTest, PiecesAddUpWhereverTheTensorIsCut) {
  constexpr int64_t kRows = 40, kRowBytes = 77;
  GuardedBytes data(kRows * kRowBytes);
  FillRandom(data, 3);
  const uint64_t whole = DigestRows(data.data(), 0, kRows, kRowBytes, kRowBytes);
  for (int64_t cut = 0; cut <= kRows; ++cut) {
    const uint64_t first = DigestRows(data.data(), 0, cut, kRowBytes, kRowBytes);
    const uint64_t second = DigestRows(data.data() + cut * kRowBytes, cut, kRows - cut, kRowBytes, kRowBytes);
    ASSERT_EQ(first + second, whole) << cut;
  }
}

TEST_P(DigestTest, SeesEverySingleBitFlip) {
  constexpr int64_t kRows = 5, kRowBytes = 75;
  GuardedBytes data(kRows * kRowBytes);
  FillRandom(data, 4);
  const uint64_t digest = DigestRows(data.data(), 0, kRows, kRowBytes, kRowBytes);
  for (int64_t bit = 0; bit < 8 * data.size(); ++bit) {
    data.data()[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_NE(DigestRows(data.data(), 0, kRows, kRowBytes, kRowBytes), digest) << bit;
    data.data()[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST_P(DigestTest, SeesMovedWordsAndRows) {
  constexpr int64_t kRows = 6, kRowBytes = 64;
  GuardedBytes data(kRows * kRowBytes);
  FillRandom(data, 5);
  const uint64_t digest = DigestRows(data.data(), 0, kRows, kRowBytes, kRowBytes);
  auto* words = reinterpret_cast<uint64_t*>(data.data());
  for (int i = 0; i < kRows * 8; ++i) {
    for (int j = 0; j < i; ++j) {
      std::swap(words[i], words[j]);
      ASSERT_NE(DigestRows(data.data(), 0, kRows, kRowBytes, kRowBytes), digest) << i << " and " << j;
      std::swap(words[i], words[j]);
    }
  }
  for (int row = 1; row < kRows; ++row) {
    std::swap_ranges(words, words + 8, words + 8 * row);
    ASSERT_NE(DigestRows(data.data(), 0, kRows, kRowBytes, kRowBytes), digest) << row;
    std::swap_ranges(words, words + 8, words + 8 * row);
  }
}

TEST(DigestScalesTest, AgreesWithItsDefinitionAndAddsUp) {
  GuardedBytes scales(4 * 33);
  FillRandom(scales, 6);
  EXPECT_EQ(DigestScales(scales.data(), 9, 33), testing::ReferenceScaleDigest(scales.data(), 9, 33));
  EXPECT_EQ(DigestScales(scales.data(), 9, 20) + DigestScales(scales.data() + 80, 29, 13),
            DigestScales(scales.data(), 9, 33));
  EXPECT_EQ(DigestScales(scales.data(), 0, 0), 0u);
}

}  // namespace
}  // namespace wsync
