// The FP8 encoder, host side: one row range of one tensor in one pass, with digest and non-finite check.
//
// E4M3 (float8_e4m3fn): max 448, no infinities, NaN 0x7F/0xFF, round to nearest even, saturating, -0 kept.
// Scales are dequantization multipliers (w ~= code * scale), fp32. With amax the largest |x| of the block, channel or
// tensor and C = fl(1/448), all in fp32 without contraction; a slash is an IEEE division:
//
//   preset    scale s                     code              zero or tiny amax            twin of
//   default   s = max(amax*C, FLT_MIN)    sat_rne(x*(1/s))  amax == 0: s = 1             -
//   deepgemm  s = max(amax, 1e-4)*C       sat_rne(x*(1/s))  as formula                   DeepGEMM, vLLM, SGLang
//   nemo      S = 448/amax, s = 1/S       sat_rne(x*S)      amax == 0 or S == inf: S = 1 NeMo-RL, Transformer Engine
//   verl      s = max(amax, 1e-10)*C      sat_rne(x*(1/s))  as formula                   verl, slime, AReaL
//
// The peers' sources say amax / 448; what they give on a GPU is the product with C, in every scale of the golden file
// (the quotient is one step lower in 25 of its 51). kPow2 rounds s up to a power of two before encoding (2^ceil(log2
// s), taken from the bits, so exact; a subnormal s becomes FLT_MIN), and then multiplies with 1/s.
//
// The GPU kernels are held to these bytes. Two differences from the peers are known and tested (golden_test.cc): where
// S == inf nemo itself gives scale 0 and NaN codes; some of Triton's codes are those of a 1/s one step higher.
//
// Stateless; safe from any thread; a caller that wants several threads splits a tensor at multiples of 128 rows, since
// digests add up and scales do not cross such a cut. SIMD is chosen at run time (avx512, avx2, portable); every level
// gives the same bytes. WSYNC_SIMD=portable|avx2|avx512 in the environment caps the level, for tests; other values are
// ignored.
#ifndef WSYNC_KERNELS_QUANTIZE_H_
#define WSYNC_KERNELS_QUANTIZE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/format.h"

namespace wsync {

inline constexpr int64_t kNoIndex = -1;

// Rows [row_begin, row_begin + rows) of a contiguous [*, cols] tensor.
struct EncodeTask {
  const std::byte* source = nullptr;  // element [row_begin, 0]; naturally aligned for dtype
  Dtype dtype = Dtype::kBF16;
  int64_t row_begin = 0;  // for Granularity::kBlock a multiple of kBlockSize
  int64_t rows = 0;
  int64_t cols = 0;
  Recipe recipe;                // raw: any dtype. fp8: IsQuantizable(dtype)
  float tensor_amax = 0;        // Granularity::kTensor only: AbsMax of the whole tensor
  std::byte* data = nullptr;    // out: rows*cols codes, or the raw bytes; contiguous
  std::byte* scales = nullptr;  // out: ScaleRows x ScaleCols floats, 4-byte aligned; may be null for kTensor
                                // (the piece that holds row 0 carries the one scale) and is ignored for raw
};
struct EncodeResult {
  uint64_t digest = 0;                 // DigestRows(data) + DigestScales(scales), see digest.h
  int64_t first_nonfinite = kNoIndex;  // flat element index in the tensor of the first NaN or infinity; then the
                                       // bytes written are unspecified. Raw floating tensors (incl. FP8 NaN) are
                                       // checked too, for NaN alone where the recipe allows infinities; integers and
                                       // the FNUZ encodings never fail
};
EncodeResult Encode(const EncodeTask& task);

// What one element is, for words about it; `value` points at its bytes, aligned or not. Of a C64 the worse of its
// halves.
enum class NumberKind : uint8_t { kFinite, kInfinity, kMinusInfinity, kNan };  // in rising order of badness
NumberKind KindOfNumber(const std::byte* value, Dtype dtype);
std::string_view NumberKindName(NumberKind kind);  // "finite" | "infinity" | "-infinity" | "NaN"

// Largest |x| of a row range, for Granularity::kTensor; combine ranges with max.
struct AbsMaxResult {
  float amax = 0;
  int64_t first_nonfinite = kNoIndex;
};
AbsMaxResult AbsMax(const std::byte* source, Dtype dtype, int64_t row_begin, int64_t rows, int64_t cols);

// The scale a preset gives for one amax. REQUIRES: amax finite and >= 0.
struct Scale {
  float dequant;   // what goes on the wire
  float multiply;  // what x is multiplied with before rounding
};
Scale ScaleFor(float amax, Preset preset, ScaleFormat format);

// dequantize: out[r, c] = code * scale, for tests, `wsync demo` and references. Contiguous [rows, cols]; `row_begin`
// selects scales as in EncodeTask with `scales` pointing at the scale of element [row_begin, 0].
void Dequantize(const std::byte* codes, const float* scales, Granularity granularity, int64_t rows, int64_t cols,
                float* out);

std::string_view SimdLevel();  // "avx512" | "avx2" | "portable": what this process uses

}  // namespace wsync

#endif  // WSYNC_KERNELS_QUANTIZE_H_
