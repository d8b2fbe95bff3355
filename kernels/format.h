// The vocabulary of encodings: element types, recipes, and the shape algebra that follows from them.
// Pure constants and constexpr functions, shared by kernels, core and client; no owner, no state.
#ifndef WSYNC_KERNELS_FORMAT_H_
#define WSYNC_KERNELS_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace wsync {

// Element types, named as safetensors names them (DtypeName). The numbers are the wire's: never reuse one.
enum class Dtype : uint8_t {
  kBool = 1,
  kU8 = 2,
  kI8 = 3,
  kF8E5M2 = 4,
  kF8E4M3 = 5,
  kI16 = 6,
  kU16 = 7,
  kF16 = 8,
  kBF16 = 9,
  kI32 = 10,
  kU32 = 11,
  kF32 = 12,
  kF64 = 13,
  kI64 = 14,
  kU64 = 15,
  kF8E8M0 = 16,  // from here on they are moved as they are, never quantized
  kF8E4M3Fnuz = 17,
  kF8E5M2Fnuz = 18,
  kC64 = 19,  // two F32
};

constexpr int64_t DtypeBytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBool:
    case Dtype::kU8:
    case Dtype::kI8:
    case Dtype::kF8E5M2:
    case Dtype::kF8E4M3:
    case Dtype::kF8E8M0:
    case Dtype::kF8E4M3Fnuz:
    case Dtype::kF8E5M2Fnuz:
      return 1;
    case Dtype::kI16:
    case Dtype::kU16:
    case Dtype::kF16:
    case Dtype::kBF16:
      return 2;
    case Dtype::kI32:
    case Dtype::kU32:
    case Dtype::kF32:
      return 4;
    case Dtype::kF64:
    case Dtype::kI64:
    case Dtype::kU64:
    case Dtype::kC64:
      return 8;
  }
  return 0;
}
std::string_view DtypeName(Dtype dtype);                 // "BF16", "F8_E4M3", ...
std::optional<Dtype> ParseDtype(std::string_view name);  // inverse of DtypeName
constexpr bool IsQuantizable(Dtype dtype) {              // dtypes the FP8 encoder takes
  return dtype == Dtype::kBF16 || dtype == Dtype::kF16 || dtype == Dtype::kF32;
}

constexpr bool IsFp8(Dtype dtype) {  // weights that are FP8 already, in whatever encoding
  return dtype == Dtype::kF8E4M3 || dtype == Dtype::kF8E5M2 || dtype == Dtype::kF8E4M3Fnuz ||
         dtype == Dtype::kF8E5M2Fnuz;
}

// How a tensor's FP8 scales are laid over it.
enum class Granularity : uint8_t {
  kBlock = 1,    // 128x128 blocks; scales F32 [ceil(rows/128), ceil(cols/128)], named X.weight_scale_inv
  kChannel = 2,  // per output row; scales F32 [rows, 1], named X.weight_scale
  kTensor = 3,   // one scale; F32 [1], named X.weight_scale
};
enum class ScaleFormat : uint8_t { kFp32 = 1, kPow2 = 2 };
// Whose arithmetic is reproduced, bit for bit; the formulas are in quantize.h.
enum class Preset : uint8_t { kDefault = 1, kDeepGemm = 2, kNemo = 3, kVerl = 4 };

// How one tensor is encoded. `fp8 == false` is the raw recipe: bytes as they are; the three fields after it are then
// ignored, and only then `allow_infinities` counts.
struct Recipe {
  bool fp8 = false;
  Granularity granularity = Granularity::kBlock;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  Preset preset = Preset::kDefault;
  bool allow_infinities = false;  // of raw floating tensors; NaN is an error nevertheless
  bool operator==(const Recipe&) const = default;
};

std::string_view GranularityName(Granularity g);  // "block" | "channel" | "tensor"
std::string_view ScaleFormatName(ScaleFormat f);  // "fp32" | "pow2"
std::string_view PresetName(Preset p);            // "default" | "deepgemm" | "nemo" | "verl"
std::optional<Granularity> ParseGranularity(std::string_view name);
std::optional<ScaleFormat> ParseScaleFormat(std::string_view name);
std::optional<Preset> ParsePreset(std::string_view name);

inline constexpr int64_t kBlockSize =
    128;  // rows and columns of a quantization block; also the unit tensors are cut in

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t unit) { return CeilDiv(a, unit) * unit; }

// Scale grid of `rows` x `cols` elements. REQUIRES: for kBlock, the rows start at a multiple of kBlockSize.
constexpr int64_t ScaleRows(Granularity g, int64_t rows) {
  return g == Granularity::kBlock ? CeilDiv(rows, kBlockSize) : g == Granularity::kChannel ? rows : 1;
}
constexpr int64_t ScaleCols(Granularity g, int64_t cols) {
  return g == Granularity::kBlock ? CeilDiv(cols, kBlockSize) : 1;
}

}  // namespace wsync

#endif  // WSYNC_KERNELS_FORMAT_H_
