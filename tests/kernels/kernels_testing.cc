#include "kernels_testing.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/digest.h"
#include "kernels/fp8.h"

namespace wsync::testing {
namespace {

constexpr int64_t kGuard = 256;
constexpr std::byte kGuardByte{0xA5};
constexpr std::byte kPoison{0x5A};

uint64_t Fmix64(uint64_t x) {  // MurmurHash3's finalizer
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  x ^= x >> 33;
  return x;
}

float FromHalf(uint32_t bits) {
  const uint32_t exponent = bits >> 10 & 0x1F, mantissa = bits & 0x3FF;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                  : std::ldexp(static_cast<float>(mantissa | 0x400), static_cast<int>(exponent) - 25);
  if (exponent == 0x1F) magnitude = mantissa == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

uint32_t ToHalf(float x) {  // nearest toward zero, saturating
  uint32_t best = 0;
  for (uint32_t bit = 0x4000; bit != 0; bit >>= 1) {
    if ((best | bit) < 0x7C00 && FromHalf(best | bit) <= std::fabs(x)) best |= bit;
  }
  return best | (std::signbit(x) ? 0x8000 : 0);
}

float AmaxOf(const Tensor& t, const std::vector<float>& values, int64_t row, int64_t row_end, int64_t col,
             int64_t col_end) {
  float amax = 0;
  for (int64_t r = row; r < std::min(row_end, t.rows); ++r) {
    for (int64_t c = col; c < std::min(col_end, t.cols); ++c)
      amax = std::max(amax, std::fabs(values[static_cast<size_t>(r * t.cols + c)]));
  }
  return amax;
}

}  // namespace

std::vector<std::string> AvailableLevels() {
  const std::string before = simd::Active().name;
  std::vector<std::string> levels;
  for (const char* level : {"portable", "avx2", "avx512"}) {
    if (simd::Use(level)) levels.push_back(level);
  }
  simd::Use(before);
  return levels;
}

GuardedBytes::GuardedBytes(int64_t size, int64_t misalignment)
    : size_(size), storage_(static_cast<size_t>(size + misalignment + 2 * kGuard + 64), kGuardByte) {
  const auto address = reinterpret_cast<uintptr_t>(storage_.data() + kGuard);
  begin_ = kGuard + static_cast<int64_t>((64 - address % 64) % 64) + misalignment;
  std::fill_n(data(), size, kPoison);
}

bool GuardedBytes::GuardsIntact() const {
  const auto intact = [](std::byte b) { return b == kGuardByte; };
  return std::all_of(storage_.begin(), storage_.begin() + begin_, intact) &&
         std::all_of(storage_.begin() + begin_ + size_, storage_.end(), intact);
}

std::vector<uint8_t> GuardedBytes::Copy() const {
  const auto* first = reinterpret_cast<const uint8_t*>(storage_.data()) + begin_;
  return {first, first + size_};
}

uint64_t ReferenceDigest(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes, int64_t pitch) {
  uint64_t digest = 0;
  const int64_t words = (row_bytes + 7) / 8;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t w = 0; w < words; ++w) {
      uint64_t word = 0;
      for (int64_t b = 8 * w; b < std::min(8 * w + 8, row_bytes); ++b) {
        word |= std::to_integer<uint64_t>(data[r * pitch + b]) << (8 * (b % 8));
      }
      const auto index = static_cast<uint64_t>((row_begin + r) * words + w);
      digest += Fmix64(word + (index + 1) * 0x9E3779B97F4A7C15ull);
    }
  }
  return digest;
}

uint64_t ReferenceScaleDigest(const std::byte* scales, int64_t first, int64_t count) {
  uint64_t digest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, scales + 4 * i, 4);
    digest += Fmix64(word + ((uint64_t{1} << 48) + static_cast<uint64_t>(first + i) + 1) * 0x9E3779B97F4A7C15ull);
  }
  return digest;
}

uint32_t BitsOf(float x, Dtype dtype) {
  if (dtype == Dtype::kF16) return ToHalf(x);
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return dtype == Dtype::kBF16 ? bits >> 16 : bits;
}

float ValueOf(uint32_t bits, Dtype dtype) {
  if (dtype == Dtype::kF16) return FromHalf(bits);
  return std::bit_cast<float>(dtype == Dtype::kBF16 ? bits << 16 : bits);
}

Encoded EncodeWhole(const Tensor& t, const Recipe& recipe) {
  const int64_t scale_count = ScaleRows(recipe.granularity, t.rows) * ScaleCols(recipe.granularity, t.cols);
  GuardedBytes codes(t.rows * t.cols), scales(4 * scale_count);
  EncodeTask task{.source = t.data(), .dtype = t.dtype, .rows = t.rows, .cols = t.cols, .recipe = recipe};
  if (recipe.granularity == Granularity::kTensor) task.tensor_amax = AbsMax(t.data(), t.dtype, 0, t.rows, t.cols).amax;
  task.data = codes.data();
  task.scales = scales.data();
  const EncodeResult result = Encode(task);
  EXPECT_EQ(result.first_nonfinite, kNoIndex);
  EXPECT_TRUE(codes.GuardsIntact());
  EXPECT_TRUE(scales.GuardsIntact());
  Encoded encoded{.codes = codes.Copy(), .digest = result.digest};
  encoded.scale_bits.resize(static_cast<size_t>(scale_count));
  if (scale_count > 0) std::memcpy(encoded.scale_bits.data(), scales.data(), static_cast<size_t>(scales.size()));
  return encoded;
}

Encoded ReferenceEncode(const Tensor& t, const Recipe& recipe) {
  const bool block = recipe.granularity == Granularity::kBlock, channel = recipe.granularity == Granularity::kChannel;
  const int64_t tile_rows = block ? 128 : channel ? 1 : t.rows, tile_cols = block ? 128 : t.cols;
  Encoded encoded{.codes = std::vector<uint8_t>(static_cast<size_t>(t.rows * t.cols))};
  std::vector<float> values;
  for (int64_t i = 0; i < t.rows * t.cols; ++i) values.push_back(t.At(i));
  for (int64_t i = 0; i < ScaleRows(recipe.granularity, t.rows); ++i) {
    for (int64_t j = 0; j < ScaleCols(recipe.granularity, t.cols); ++j) {
      const int64_t row = i * tile_rows, col = j * tile_cols;
      const int64_t row_end = std::min(row + tile_rows, t.rows), col_end = std::min(col + tile_cols, t.cols);
      const Scale scale = ScaleFor(AmaxOf(t, values, row, row_end, col, col_end), recipe.preset, recipe.scale_format);
      encoded.scale_bits.push_back(std::bit_cast<uint32_t>(scale.dequant));
      for (int64_t r = row; r < row_end; ++r) {
        for (int64_t c = col; c < col_end; ++c) {
          const auto at = static_cast<size_t>(r * t.cols + c);
          encoded.codes[at] = EncodeE4M3(values[at] * scale.multiply);
        }
      }
    }
  }
  encoded.digest =
      ReferenceDigest(reinterpret_cast<const std::byte*>(encoded.codes.data()), 0, t.rows, t.cols, t.cols) +
      ReferenceScaleDigest(reinterpret_cast<const std::byte*>(encoded.scale_bits.data()), 0,
                           static_cast<int64_t>(encoded.scale_bits.size()));
  return encoded;
}

}  // namespace wsync::testing
