// Encode against a loop over elements: every dtype, recipe, kind of numbers and awkward shape, at every SIMD level.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <random>

#include "kernels/digest.h"
#include "kernels/fp8.h"
#include "kernels_testing.h"

namespace wsync {
namespace {

using testing::Encoded;
using testing::GuardedBytes;
using testing::Tensor;

constexpr Dtype kDtypes[] = {Dtype::kBF16, Dtype::kF16, Dtype::kF32};
constexpr Granularity kGranularities[] = {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor};

std::vector<Recipe> AllRecipes() {
  std::vector<Recipe> recipes;
  for (Granularity g : kGranularities) {
    for (ScaleFormat f : {ScaleFormat::kFp32, ScaleFormat::kPow2}) {
      for (Preset p : {Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl}) {
        recipes.push_back({.fp8 = true, .granularity = g, .scale_format = f, .preset = p});
      }
    }
  }
  return recipes;
}

std::string NameOf(const Recipe& r) {
  return std::string(GranularityName(r.granularity)) + " " + std::string(ScaleFormatName(r.scale_format)) + " " +
         std::string(PresetName(r.preset));
}

Tensor Random(Dtype dtype, int64_t rows, int64_t cols, const std::function<float(std::mt19937&)>& draw) {
  std::mt19937 random(static_cast<uint32_t>(rows * 1000 + cols));
  Tensor tensor(dtype, rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) tensor.SetBits(i, testing::BitsOf(draw(random), dtype));
  return tensor;
}

float Normal(std::mt19937& random) { return std::normal_distribution<float>(0, 0.02f)(random); }
float HeavyTailed(std::mt19937& random) {
  const float x = std::normal_distribution<float>(0, 1)(random);
  return x * std::exp2(6 * std::fabs(x));
}
float AnyMagnitude(std::mt19937& random) {  // subnormals and huge numbers side by side
  const float x = std::exp2(std::uniform_real_distribution<float>(-149, 127.9f)(random));
  return random() % 2 == 0 ? x : -x;
}
float Subnormal(std::mt19937& random) { return std::bit_cast<float>(static_cast<uint32_t>(random()) & 0x807FFFFF); }
float Huge(std::mt19937& random) { return 3.4e38f * std::uniform_real_distribution<float>(-1, 1)(random); }
float SignedZero(std::mt19937& random) { return random() % 2 == 0 ? 0.0f : -0.0f; }

class EncodeTest : public testing::EachSimdLevel {};
INSTANTIATE_FOR_EACH_SIMD_LEVEL(EncodeTest);

TEST_P(EncodeTest, AgreesWithElementByElementForAllRecipesDtypesAndNumbers) {
  for (Dtype dtype : kDtypes) {
    for (const auto& draw : {Normal, HeavyTailed, AnyMagnitude, Subnormal, Huge, SignedZero}) {
      const Tensor tensor = Random(dtype, 130, 135, draw);
      for (const Recipe& recipe : AllRecipes()) {
        ASSERT_TRUE(EncodeWhole(tensor, recipe) == ReferenceEncode(tensor, recipe))
            << DtypeName(dtype) << " " << NameOf(recipe);
      }
    }
  }
}

TEST_P(EncodeTest, AgreesWithElementByElementForAwkwardShapes) {
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},     {1, 7},    {7, 1},     {3, 64},     {127, 129}, {129, 127},
                                                {128, 128}, {257, 33}, {2, 1025},  {129, 1153}, {1, 9000},  {300, 3},
                                                {0, 5},     {5, 0},    {128, 191}, {5, 16385},  {40, 520}};
  for (const auto& [rows, cols] : shapes) {
    for (Dtype dtype : kDtypes) {
      const Tensor tensor = Random(dtype, rows, cols, HeavyTailed);
      for (Granularity g : kGranularities) {
        const Recipe recipe{.fp8 = true, .granularity = g};
        ASSERT_TRUE(EncodeWhole(tensor, recipe) == ReferenceEncode(tensor, recipe))
            << DtypeName(dtype) << " " << rows << "x" << cols << " " << NameOf(recipe);
      }
    }
  }
}

TEST_P(EncodeTest, PiecesOfATensorGiveTheBytesAndTheDigestOfTheWhole) {
  const Tensor tensor = Random(Dtype::kBF16, 300, 333, HeavyTailed);
  for (const Recipe& recipe : AllRecipes()) {
    const Encoded whole = EncodeWhole(tensor, recipe);
    const int64_t scale_cols = ScaleCols(recipe.granularity, tensor.cols);
    const float amax = AbsMax(tensor.data(), tensor.dtype, 0, tensor.rows, tensor.cols).amax;
    uint64_t digest = 0;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 128}, {128, 300}}) {
      const int64_t rows = end - begin, scale_rows = ScaleRows(recipe.granularity, rows);
      const bool with_scales = recipe.granularity != Granularity::kTensor || begin == 0;
      GuardedBytes codes(rows * tensor.cols), scales(4 * scale_rows * scale_cols);
      const EncodeResult result = Encode({.source = tensor.data() + begin * tensor.cols * 2,
                                          .dtype = tensor.dtype,
                                          .row_begin = begin,
                                          .rows = rows,
                                          .cols = tensor.cols,
                                          .recipe = recipe,
                                          .tensor_amax = amax,
                                          .data = codes.data(),
                                          .scales = with_scales ? scales.data() : nullptr});
      digest += result.digest;
      const std::vector<uint8_t> piece = codes.Copy();
      EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.codes.begin() + begin * tensor.cols)) << NameOf(recipe);
      const int64_t first_scale = ScaleRows(recipe.granularity, begin) * scale_cols;
      if (with_scales) {
        const auto* expected = whole.scale_bits.data() + (begin == 0 ? 0 : first_scale);
        EXPECT_EQ(std::memcmp(scales.data(), expected, static_cast<size_t>(scales.size())), 0) << NameOf(recipe);
      }
      EXPECT_TRUE(codes.GuardsIntact() && scales.GuardsIntact());
    }
    EXPECT_EQ(digest, whole.digest) << NameOf(recipe);
  }
}

TEST_P(EncodeTest, RawCopiesAnyDtypeWithItsDigest) {
  for (int number = 1; number <= 15; ++number) {
    const auto dtype = static_cast<Dtype>(number);
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {1, 100001}, {300, 77}, {2, 262144}}) {
      const int64_t row_bytes = cols * DtypeBytes(dtype);
      GuardedBytes source(rows * row_bytes), out(rows * row_bytes);
      std::mt19937 random(1);
      for (int64_t i = 0; i < source.size(); ++i) source.data()[i] = static_cast<std::byte>(random() & 0x3F);
      const EncodeResult result = Encode(
          {.source = source.data(), .dtype = dtype, .row_begin = 11, .rows = rows, .cols = cols, .data = out.data()});
      EXPECT_EQ(result.first_nonfinite, kNoIndex);
      EXPECT_EQ(result.digest, testing::ReferenceDigest(source.data(), 11, rows, row_bytes, row_bytes));
      EXPECT_TRUE(out.Copy() == source.Copy()) << DtypeName(dtype) << " " << rows << "x" << cols;
      EXPECT_TRUE(out.GuardsIntact());
    }
  }
}

TEST_P(EncodeTest, AbsMaxIsTheLargestMagnitude) {
  for (Dtype dtype : kDtypes) {
    for (const auto& draw : {Normal, AnyMagnitude, Subnormal, SignedZero}) {
      const Tensor tensor = Random(dtype, 19, 37, draw);
      float largest = 0;
      for (int64_t i = 0; i < 19 * 37; ++i) largest = std::max(largest, std::fabs(tensor.At(i)));
      const AbsMaxResult result = AbsMax(tensor.data(), dtype, 0, 19, 37);
      EXPECT_EQ(result.amax, largest);
      EXPECT_EQ(result.first_nonfinite, kNoIndex);
    }
  }
}

TEST(DequantizeTest, MultipliesEachCodeWithItsScale) {
  const Tensor tensor = Random(Dtype::kF32, 200, 150, Normal);
  for (Granularity g : kGranularities) {
    const Encoded encoded = EncodeWhole(tensor, {.fp8 = true, .granularity = g});
    std::vector<float> scales, out(200 * 150);
    for (uint32_t bits : encoded.scale_bits) scales.push_back(std::bit_cast<float>(bits));
    Dequantize(reinterpret_cast<const std::byte*>(encoded.codes.data()), scales.data(), g, 200, 150, out.data());
    for (int64_t i = 0; i < 200 * 150; ++i) {
      const int64_t r = i / 150, c = i % 150;
      const int64_t s = g == Granularity::kBlock ? r / 128 * 2 + c / 128 : g == Granularity::kChannel ? r : 0;
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(out[at], DecodeE4M3(encoded.codes[at]) * scales[static_cast<size_t>(s)]);
      const float half_step = std::max(std::fabs(tensor.At(i)) / 16, scales[static_cast<size_t>(s)] / 1024);
      ASSERT_NEAR(out[at], tensor.At(i), 1.001f * half_step);
    }
  }
}

}  // namespace
}  // namespace wsync
