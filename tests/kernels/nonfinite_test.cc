#include <gtest/gtest.h>

#include <cstring>
#include <utility>

#include "kernels/digest.h"
#include "kernels_testing.h"

namespace wsync {
namespace {

using testing::GuardedBytes;
using testing::Tensor;

struct BadBits {
  Dtype dtype;
  std::vector<uint64_t> nonfinite;
  uint64_t largest_finite;
};

const std::vector<BadBits>& Cases() {
  static const std::vector<BadBits> cases = {
      {Dtype::kBF16, {0x7F80, 0xFF80, 0x7F81, 0xFFC0}, 0xFF7F},
      {Dtype::kF16, {0x7C00, 0xFC00, 0x7C01, 0xFE00}, 0xFBFF},
      {Dtype::kF32, {0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000}, 0xFF7FFFFF},
      {Dtype::kF64, {0x7FF0000000000000, 0xFFF0000000000000, 0x7FF0000000000001}, 0xFFEFFFFFFFFFFFFF},
      {Dtype::kF8E4M3, {0x7F, 0xFF}, 0xFE},
      {Dtype::kF8E5M2, {0x7C, 0xFC, 0x7D, 0xFF}, 0xFB},
      {Dtype::kF8E8M0, {0xFF, 0xFF}, 0xFE},
      {Dtype::kC64, {0x7F80000000000000, 0x00000000FF800000, 0x7F80000100000000, 0x7FC00000}, 0xFF7FFFFFFF7FFFFF},
  };
  return cases;
}

constexpr int64_t kRows = 131, kCols = 269, kRowBegin = 256;

// First, last, around block and SIMD boundaries, in the partial steps at the right edge, and in the last rows.
const std::vector<int64_t>& Positions() {
  static const std::vector<int64_t> positions = {0,
                                                 1,
                                                 63,
                                                 64,
                                                 127,
                                                 128,
                                                 255,
                                                 256,
                                                 kCols - 1,
                                                 kCols,
                                                 127 * kCols,
                                                 128 * kCols,
                                                 60 * kCols + 140,
                                                 130 * kCols + 200,
                                                 kRows * kCols - 1};
  return positions;
}

std::vector<Recipe> RecipesFor(Dtype dtype) {
  std::vector<Recipe> recipes = {Recipe{}};
  if (!IsQuantizable(dtype)) return recipes;
  for (Granularity g : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    for (Preset p : {Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl}) {
      recipes.push_back({.fp8 = true, .granularity = g, .preset = p});
    }
  }
  return recipes;
}

void Put(GuardedBytes& tensor, Dtype dtype, int64_t index, uint64_t bits) {
  std::memcpy(tensor.data() + index * DtypeBytes(dtype), &bits, static_cast<size_t>(DtypeBytes(dtype)));
}

EncodeResult EncodeAt(GuardedBytes& source, Dtype dtype, const Recipe& recipe) {
  GuardedBytes data(source.size()), scales(4 * kRows);
  const EncodeResult result = Encode({.source = source.data(),
                                      .dtype = dtype,
                                      .row_begin = kRowBegin,
                                      .rows = kRows,
                                      .cols = kCols,
                                      .recipe = recipe,
                                      .tensor_amax = 1,
                                      .data = data.data(),
                                      .scales = scales.data()});
  EXPECT_TRUE(data.GuardsIntact() && scales.GuardsIntact());
  return result;
}

class NonFiniteTest : public testing::EachSimdLevel {};
INSTANTIATE_FOR_EACH_SIMD_LEVEL(NonFiniteTest);

TEST_P(NonFiniteTest, IsReportedWithItsFlatIndexInEveryDtypeAndRecipe) {
  for (const BadBits& test : Cases()) {
    GuardedBytes source(kRows * kCols * DtypeBytes(test.dtype));
    for (int64_t i = 0; i < kRows * kCols; ++i) Put(source, test.dtype, i, test.largest_finite);
    for (const Recipe& recipe : RecipesFor(test.dtype)) {
      ASSERT_EQ(EncodeAt(source, test.dtype, recipe).first_nonfinite, kNoIndex) << DtypeName(test.dtype);
      for (size_t i = 0; i < Positions().size(); ++i) {
        const int64_t index = Positions()[i];
        Put(source, test.dtype, index, test.nonfinite[i % test.nonfinite.size()]);
        ASSERT_EQ(EncodeAt(source, test.dtype, recipe).first_nonfinite, kRowBegin * kCols + index)
            << DtypeName(test.dtype) << " at " << index;
        Put(source, test.dtype, index, test.largest_finite);
      }
    }
  }
}

TEST_P(NonFiniteTest, EveryKindIsSeen) {
  for (const BadBits& test : Cases()) {
    for (uint64_t bits : test.nonfinite) {
      GuardedBytes source(kRows * kCols * DtypeBytes(test.dtype));
      for (int64_t i = 0; i < kRows * kCols; ++i) Put(source, test.dtype, i, 0);
      Put(source, test.dtype, 777, bits);
      EXPECT_EQ(EncodeAt(source, test.dtype, Recipe{}).first_nonfinite, kRowBegin * kCols + 777)
          << DtypeName(test.dtype) << std::hex << " " << bits;
    }
  }
}

TEST_P(NonFiniteTest, TheSmallestIndexWinsThoughAnotherBlockIsMetFirst) {
  for (const BadBits& test : Cases()) {
    for (const Recipe& recipe : RecipesFor(test.dtype)) {
      GuardedBytes source(kRows * kCols * DtypeBytes(test.dtype));
      for (int64_t i = 0; i < kRows * kCols; ++i) Put(source, test.dtype, i, 0);
      Put(source, test.dtype, 5 * kCols + 3, test.nonfinite[0]);  // first block, later row
      Put(source, test.dtype, 2 * kCols + 260, test.nonfinite[1]);
      Put(source, test.dtype, 130 * kCols, test.nonfinite[0]);
      EXPECT_EQ(EncodeAt(source, test.dtype, recipe).first_nonfinite, (kRowBegin + 2) * kCols + 260);
    }
  }
}

TEST_P(NonFiniteTest, AbsMaxReportsItToo) {
  for (const BadBits& test : Cases()) {
    if (!IsQuantizable(test.dtype)) continue;
    for (int64_t index : Positions()) {
      GuardedBytes source(kRows * kCols * DtypeBytes(test.dtype));
      for (int64_t i = 0; i < kRows * kCols; ++i) Put(source, test.dtype, i, 0);
      Put(source, test.dtype, index, test.nonfinite[0]);
      EXPECT_EQ(AbsMax(source.data(), test.dtype, kRowBegin, kRows, kCols).first_nonfinite, kRowBegin * kCols + index);
    }
  }
}

// What may be allowed is the infinities alone, of raw tensors alone.
TEST_P(NonFiniteTest, AllowedInfinitiesPassAsTheyAreAndNaNBehindThemIsStillFound) {
  const Recipe allowing{.allow_infinities = true};
  struct Infinite {
    Dtype dtype;
    uint64_t infinity, minus_infinity, nan;
  };
  for (const Infinite& test :
       {Infinite{Dtype::kBF16, 0x7F80, 0xFF80, 0x7F81},
        {Dtype::kF16, 0x7C00, 0xFC00, 0xFC01},
        {Dtype::kF32, 0x7F800000, 0xFF800000, 0x7F800001},
        {Dtype::kF64, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF0000000000001},
        {Dtype::kF8E5M2, 0x7C, 0xFC, 0xFD},
        {Dtype::kC64, 0x7F80000000000000, 0x00000000FF800000, 0xFF80000000000000 | 0x7F800001}}) {
    GuardedBytes source(kRows * kCols * DtypeBytes(test.dtype)), copy(source.size());
    for (int64_t i = 0; i < kRows * kCols; ++i) Put(source, test.dtype, i, i % 3 ? test.infinity : test.minus_infinity);
    const EncodeResult result = Encode({.source = source.data(),
                                        .dtype = test.dtype,
                                        .row_begin = kRowBegin,
                                        .rows = kRows,
                                        .cols = kCols,
                                        .recipe = allowing,
                                        .data = copy.data()});
    EXPECT_EQ(result.first_nonfinite, kNoIndex) << DtypeName(test.dtype);
    EXPECT_EQ(std::memcmp(copy.data(), source.data(), static_cast<size_t>(source.size())), 0);
    EXPECT_EQ(result.digest, DigestRows(copy.data(), kRowBegin, kRows, kCols * DtypeBytes(test.dtype),
                                        kCols * DtypeBytes(test.dtype)));
    for (const int64_t index : Positions()) {
      const uint64_t was = index % 3 ? test.infinity : test.minus_infinity;
      Put(source, test.dtype, index, test.nan);
      EXPECT_EQ(EncodeAt(source, test.dtype, allowing).first_nonfinite, kRowBegin * kCols + index)
          << DtypeName(test.dtype) << " at " << index;
      Put(source, test.dtype, index, was);
    }
  }
}

TEST_P(NonFiniteTest, NothingAllowsTheInfinitiesOfAWeightThatIsQuantized) {
  for (Recipe recipe : RecipesFor(Dtype::kBF16)) {
    if (!recipe.fp8) continue;
    recipe.allow_infinities = true;
    GuardedBytes source(kRows * kCols * 2);
    for (int64_t i = 0; i < kRows * kCols; ++i) Put(source, Dtype::kBF16, i, 0);
    Put(source, Dtype::kBF16, 777, 0x7F80);
    EXPECT_EQ(EncodeAt(source, Dtype::kBF16, recipe).first_nonfinite, kRowBegin * kCols + 777);
  }
}

TEST_P(NonFiniteTest, NumbersAreNamedByWhatTheyAre) {
  const auto name_of = [](uint64_t bits, Dtype dtype) {
    return NumberKindName(KindOfNumber(reinterpret_cast<const std::byte*>(&bits), dtype));
  };
  EXPECT_EQ(name_of(0x3F80, Dtype::kBF16), "finite");
  EXPECT_EQ(name_of(0xFF80, Dtype::kBF16), "-infinity");
  EXPECT_EQ(name_of(0x7C, Dtype::kF8E5M2), "infinity");
  EXPECT_EQ(name_of(0x7FF0000000000001, Dtype::kF64), "NaN");
  EXPECT_EQ(name_of(0x7F, Dtype::kF8E4M3), "NaN");
  EXPECT_EQ(name_of(0x7F, Dtype::kF8E8M0), "finite");
  EXPECT_EQ(name_of(0xFF, Dtype::kF8E8M0), "NaN");
  EXPECT_EQ(name_of(0x7FC00000FF800000, Dtype::kC64), "NaN");
  EXPECT_EQ(name_of(0xFF80000000000000, Dtype::kC64), "-infinity");
  EXPECT_EQ(name_of(~uint64_t{0}, Dtype::kI64), "finite");
}

TEST_P(NonFiniteTest, IntegersAndOpaqueBytesNeverFail) {
  for (Dtype dtype :
       {Dtype::kBool, Dtype::kU8, Dtype::kI16, Dtype::kU32, Dtype::kI64, Dtype::kF8E4M3Fnuz, Dtype::kF8E5M2Fnuz}) {
    GuardedBytes source(kRows * kCols * DtypeBytes(dtype));
    for (int64_t i = 0; i < source.size(); ++i) source.data()[i] = std::byte{0xFF};
    EXPECT_EQ(EncodeAt(source, dtype, Recipe{}).first_nonfinite, kNoIndex) << DtypeName(dtype);
  }
}

}  // namespace
}  // namespace wsync
