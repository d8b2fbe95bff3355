#include "kernels/fp8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels_testing.h"

namespace wsync {
namespace {

// The value of a code, from the format's definition: 1 sign, 4 exponent (bias 7), 3 mantissa bits.
double ValueByDefinition(uint8_t code) {
  const int exponent = (code & 0x78) >> 3, mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? mantissa / 8.0 * std::pow(2.0, -6) : (1 + mantissa / 8.0) * std::pow(2.0, exponent - 7);
  return code >= 0x80 ? -magnitude : magnitude;
}

// The code nearest to a finite or infinite x among the 127 of its sign; of two, the even one.
uint8_t NearestByDefinition(double x) {
  int best = 0;
  double best_distance = INFINITY;
  for (int code = 0; code < 0x7F; ++code) {
    const double distance = std::fabs(std::min(std::fabs(x), 1e6) - ValueByDefinition(static_cast<uint8_t>(code)));
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
      best = code;
      best_distance = distance;
    }
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

std::vector<uint8_t> MakeTableOfBf16() {
  std::vector<uint8_t> table(65536);
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const float x = std::bit_cast<float>(pattern << 16);
    table[pattern] = std::isnan(x) ? static_cast<uint8_t>(pattern >> 8 | 0x7F) : NearestByDefinition(x);
  }
  return table;
}

const std::vector<uint8_t>& TableOfBf16() {
  static const std::vector<uint8_t> table = MakeTableOfBf16();
  return table;
}

// Values around every boundary between two codes: the boundary itself and its fp32 neighbours, both signs.
std::vector<float> Boundaries() {
  std::vector<float> values;
  for (int code = 0; code < 0x7F; ++code) {
    const double low = ValueByDefinition(static_cast<uint8_t>(code));
    const double high = code == 0x7E ? 480 : ValueByDefinition(static_cast<uint8_t>(code + 1));
    const auto middle = static_cast<float>((low + high) / 2);  // exact: five significant bits
    for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f), static_cast<float>(low)}) {
      values.push_back(x);
      values.push_back(-x);
    }
  }
  return values;
}

TEST(Fp8Test, DecodesEveryCodeByDefinition) {
  for (int code = 0; code < 256; ++code) {
    const float value = DecodeE4M3(static_cast<uint8_t>(code));
    if ((code & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, ValueByDefinition(static_cast<uint8_t>(code))) << code;
      EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
    }
  }
}

TEST(Fp8Test, EncodesEveryBf16PatternByDefinition) {
  const std::vector<uint8_t>& table = TableOfBf16();
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    ASSERT_EQ(EncodeE4M3(std::bit_cast<float>(pattern << 16)), table[pattern]) << std::hex << pattern;
  }
}

TEST(Fp8Test, EncodesBoundariesAndRandomPatternsByDefinition) {
  for (float x : Boundaries()) ASSERT_EQ(EncodeE4M3(x), NearestByDefinition(x)) << std::hexfloat << x;
  std::mt19937 random(7);
  std::uniform_real_distribution<float> exponent(-14, 10);
  for (int i = 0; i < 50000; ++i) {
    const float x = std::exp2(exponent(random)) * (i % 2 == 0 ? 1.0f : -1.0f);
    ASSERT_EQ(EncodeE4M3(x), NearestByDefinition(x)) << std::hexfloat << x;
  }
}

class Fp8SimdTest : public testing::EachSimdLevel {};
INSTANTIATE_FOR_EACH_SIMD_LEVEL(Fp8SimdTest);

simd::Rows OneRow(const void* source, int64_t count, std::vector<uint8_t>& codes) {
  codes.assign(static_cast<size_t>(count), 0x5A);
  return {.source = static_cast<const std::byte*>(source),
          .rows = 1,
          .cols = count,
          .block_cols = count,
          .out = reinterpret_cast<std::byte*>(codes.data())};
}

TEST_P(Fp8SimdTest, EncodesEveryBf16PatternButNaNByDefinition) {
  std::vector<uint16_t> patterns(65536);
  std::iota(patterns.begin(), patterns.end(), uint16_t{0});
  std::vector<uint8_t> codes;
  const float one = 1;
  simd::Active().encode_bf16(OneRow(patterns.data(), 65536, codes), &one);
  const std::vector<uint8_t>& table = TableOfBf16();
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    if (std::isnan(std::bit_cast<float>(pattern << 16))) continue;  // Encode refuses them before they get here
    ASSERT_EQ(codes[pattern], table[pattern]) << std::hex << pattern;
  }
}

TEST_P(Fp8SimdTest, EncodesEveryFinitePatternOfFp16ByDefinition) {
  std::vector<uint16_t> patterns(65536);
  std::iota(patterns.begin(), patterns.end(), uint16_t{0});
  std::vector<uint8_t> codes;
  const float one = 1;
  simd::Active().encode_f16(OneRow(patterns.data(), 65536, codes), &one);
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const float x = testing::ValueOf(pattern, Dtype::kF16);
    if (!std::isfinite(x)) continue;
    ASSERT_EQ(codes[pattern], NearestByDefinition(x)) << std::hex << pattern;
  }
}

TEST_P(Fp8SimdTest, EncodesFp32BoundariesByDefinition) {
  const std::vector<float> values = Boundaries();
  std::vector<uint8_t> codes;
  const float one = 1;
  simd::Active().encode_f32(OneRow(values.data(), static_cast<int64_t>(values.size()), codes), &one);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(codes[i], NearestByDefinition(values[i])) << std::hexfloat << values[i];
  }
}

}  // namespace
}  // namespace wsync
