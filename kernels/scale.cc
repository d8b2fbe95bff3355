// The arithmetic of scales, scalar: one per block, so it costs nothing; and the way back from codes to numbers.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/fp8.h"
#include "kernels/quantize.h"

namespace wsync {
namespace {

constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr float kInverseMax = 1.0f / kE4M3Max;  // amax is multiplied with it, not divided by 448: see quantize.h

// 2^ceil(log2 s) for normal s; subnormal s gives the smallest normal number, whose reciprocal is still finite.
float RoundUpToPowerOfTwo(float s) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(s) + 0x7FFFFF) & 0x7F800000);
}

Scale ByReciprocal(float dequant) { return {.dequant = dequant, .multiply = 1.0f / dequant}; }

Scale NemoScale(float amax) {
  const float multiply = amax == 0 ? 1.0f : kE4M3Max / amax;
  if (std::isinf(multiply)) return {.dequant = 1.0f, .multiply = 1.0f};
  return {.dequant = 1.0f / multiply, .multiply = multiply};
}

Scale Fp32Scale(float amax, Preset preset) {
  switch (preset) {
    case Preset::kDefault:
      return ByReciprocal(amax == 0 ? 1.0f : std::max(amax * kInverseMax, kSmallestNormal));
    case Preset::kDeepGemm:
      return ByReciprocal(std::max(amax, 1e-4f) * kInverseMax);
    case Preset::kVerl:
      return ByReciprocal(std::max(amax, 1e-10f) * kInverseMax);
    case Preset::kNemo:
      return NemoScale(amax);
  }
  return {.dequant = 1.0f, .multiply = 1.0f};
}

std::array<float, 256> DecodeTable() {
  std::array<float, 256> table;
  for (int code = 0; code < 256; ++code) table[static_cast<size_t>(code)] = DecodeE4M3(static_cast<uint8_t>(code));
  return table;
}

}  // namespace

Scale ScaleFor(float amax, Preset preset, ScaleFormat format) {
  const Scale scale = Fp32Scale(amax, preset);
  return format == ScaleFormat::kPow2 ? ByReciprocal(RoundUpToPowerOfTwo(scale.dequant)) : scale;
}

void Dequantize(const std::byte* codes, const float* scales, Granularity granularity, int64_t rows, int64_t cols,
                float* out) {
  static const std::array<float, 256> kDecode = DecodeTable();
  const int64_t scale_cols = ScaleCols(granularity, cols);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t scale_row = granularity == Granularity::kBlock     ? row / kBlockSize
                              : granularity == Granularity::kChannel ? row
                                                                     : 0;
    for (int64_t col = 0; col < cols; ++col) {
      const int64_t scale_col = granularity == Granularity::kBlock ? col / kBlockSize : 0;
      const size_t code = std::to_integer<size_t>(codes[row * cols + col]);
      out[row * cols + col] = kDecode[code] * scales[scale_row * scale_cols + scale_col];
    }
  }
}

}  // namespace wsync
