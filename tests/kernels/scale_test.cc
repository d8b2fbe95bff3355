// Scales against the table in quantize.h, with the corners spelled out, and the names of format.h.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "kernels/quantize.h"

namespace wsync {
namespace {

constexpr float kMin = std::numeric_limits<float>::min();
constexpr float kDenormMin = std::numeric_limits<float>::denorm_min();
constexpr float kMax = std::numeric_limits<float>::max();

TEST(ScaleTest, DefaultIsAmaxTimesTheInverseOf448WithAFloorAndOneForZero) {
  const Scale s = ScaleFor(1.5f, Preset::kDefault, ScaleFormat::kFp32);
  EXPECT_EQ(s.dequant, 1.5f * (1.0f / 448.0f));
  EXPECT_EQ(s.multiply, 1.0f / (1.5f * (1.0f / 448.0f)));
  EXPECT_EQ(ScaleFor(0, Preset::kDefault, ScaleFormat::kFp32).dequant, 1.0f);
  EXPECT_EQ(ScaleFor(kDenormMin, Preset::kDefault, ScaleFormat::kFp32).dequant, kMin);
  EXPECT_EQ(ScaleFor(447 * kMin, Preset::kDefault, ScaleFormat::kFp32).dequant, kMin);
}

TEST(ScaleTest, DeepGemmAndVerlHaveFloorsOnAmax) {
  EXPECT_EQ(ScaleFor(0, Preset::kDeepGemm, ScaleFormat::kFp32).dequant, 1e-4f * (1.0f / 448.0f));
  EXPECT_EQ(ScaleFor(2e-4f, Preset::kDeepGemm, ScaleFormat::kFp32).dequant, 2e-4f * (1.0f / 448.0f));
  EXPECT_EQ(ScaleFor(0, Preset::kVerl, ScaleFormat::kFp32).dequant, 1e-10f * (1.0f / 448.0f));
  EXPECT_EQ(ScaleFor(1e-9f, Preset::kVerl, ScaleFormat::kFp32).dequant, 1e-9f * (1.0f / 448.0f));
}

TEST(ScaleTest, NemoMultipliesWithTheQuotientAndFallsBackToOne) {
  const Scale s = ScaleFor(0.3f, Preset::kNemo, ScaleFormat::kFp32);
  EXPECT_EQ(s.multiply, 448.0f / 0.3f);
  EXPECT_EQ(s.dequant, 1.0f / (448.0f / 0.3f));
  for (float amax : {0.0f, kDenormMin, kMin}) {
    EXPECT_EQ(ScaleFor(amax, Preset::kNemo, ScaleFormat::kFp32).dequant, 1.0f) << amax;
    EXPECT_EQ(ScaleFor(amax, Preset::kNemo, ScaleFormat::kFp32).multiply, 1.0f) << amax;
  }
}

TEST(ScaleTest, Pow2IsTheNextPowerOfTwoAndKeepsExactPowers) {
  for (Preset preset : {Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl}) {
    for (float amax = 1e-30f; amax < 1e30f; amax *= 1.37f) {
      const float fp32 = ScaleFor(amax, preset, ScaleFormat::kFp32).dequant;
      const Scale pow2 = ScaleFor(amax, preset, ScaleFormat::kPow2);
      EXPECT_EQ(pow2.dequant, std::exp2(std::ceil(std::log2(static_cast<double>(fp32)))));
      EXPECT_EQ(pow2.dequant * pow2.multiply, 1.0f);
    }
    for (int e = -3; e < 20; ++e) {
      EXPECT_EQ(ScaleFor(std::ldexp(448.0f, e), preset, ScaleFormat::kPow2).dequant, std::ldexp(1.0f, e));
    }
  }
}

TEST(ScaleTest, IsFiniteAndPositiveForEveryFiniteAmax) {
  for (uint32_t bits = 0; bits < 0x7F800000; bits += 12347) {
    for (Preset preset : {Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl}) {
      for (ScaleFormat format : {ScaleFormat::kFp32, ScaleFormat::kPow2}) {
        const Scale s = ScaleFor(std::bit_cast<float>(bits), preset, format);
        ASSERT_TRUE(s.dequant > 0 && std::isfinite(s.dequant) && s.multiply > 0 && std::isfinite(s.multiply))
            << std::bit_cast<float>(bits) << " " << PresetName(preset) << " " << ScaleFormatName(format);
      }
    }
  }
  EXPECT_TRUE(std::isfinite(ScaleFor(kMax, Preset::kDefault, ScaleFormat::kPow2).dequant));
}

TEST(ScaleTest, SubnormalScalesBecomeTheSmallestNormalAsPow2) {
  const float amax = 448.0f / (0.99f * kMax);  // the smallest for which nemo has a finite quotient: s is subnormal
  EXPECT_LT(ScaleFor(amax, Preset::kNemo, ScaleFormat::kFp32).dequant, kMin);
  EXPECT_EQ(ScaleFor(amax, Preset::kNemo, ScaleFormat::kPow2).dequant, kMin);
}

TEST(FormatTest, NamesAreInverseOfParsing) {
  for (int i = 1; i <= 15; ++i) EXPECT_EQ(ParseDtype(DtypeName(static_cast<Dtype>(i))), static_cast<Dtype>(i));
  for (int i = 1; i <= 3; ++i) {
    EXPECT_EQ(ParseGranularity(GranularityName(static_cast<Granularity>(i))), static_cast<Granularity>(i));
  }
  for (int i = 1; i <= 2; ++i) {
    EXPECT_EQ(ParseScaleFormat(ScaleFormatName(static_cast<ScaleFormat>(i))), static_cast<ScaleFormat>(i));
  }
  for (int i = 1; i <= 4; ++i) EXPECT_EQ(ParsePreset(PresetName(static_cast<Preset>(i))), static_cast<Preset>(i));
  EXPECT_EQ(DtypeName(Dtype::kF8E4M3), "F8_E4M3");
  EXPECT_EQ(ParseDtype("F4"), std::nullopt);
  EXPECT_EQ(ParsePreset(""), std::nullopt);
}

}  // namespace
}  // namespace wsync
