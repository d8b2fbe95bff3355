// The device twin of scale.cc and fp8.cc: the same formulas, rounded as IEEE says whatever the compiler's flags.
#ifndef WSYNC_KERNELS_SCALE_CUDA_CUH_
#define WSYNC_KERNELS_SCALE_CUDA_CUH_

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/quantize_cuda.h"

namespace wsync::cuda {

inline constexpr float kInverseMax = 1.0f / 448.0f;
inline constexpr float kSmallestNormal = 1.17549435e-38f;

// The division of Triton, and so of verl: not IEEE's.
__device__ __forceinline__ float FullRangeReciprocal(float x) {
  float result;
  asm("div.full.f32 %0, %1, %2;" : "=f"(result) : "f"(1.0f), "f"(x));
  return result;
}

__device__ __forceinline__ Scale NemoScaleOf(float amax) {
  const float multiply = amax == 0 ? 1.0f : __fdiv_rn(448.0f, amax);
  if (isinf(multiply)) return {1.0f, 1.0f};
  return {__fdiv_rn(1.0f, multiply), multiply};
}

__device__ __forceinline__ float DequantOf(float amax, Preset preset) {
  switch (preset) {
    case Preset::kDefault:
      return amax == 0 ? 1.0f : fmaxf(__fmul_rn(amax, kInverseMax), kSmallestNormal);
    case Preset::kDeepGemm:
      return __fmul_rn(fmaxf(amax, 1e-4f), kInverseMax);
    default:
      return __fmul_rn(fmaxf(amax, 1e-10f), kInverseMax);
  }
}

// ScaleFor of quantize.h with the recipe of a piece.
__device__ __forceinline__ Scale ScaleOf(float amax, const EncodeKind& kind) {
  Scale scale{};
  if (kind.preset == Preset::kNemo) {
    scale = NemoScaleOf(amax);
    if (kind.scale_format == ScaleFormat::kFp32) return scale;
  } else {
    scale.dequant = DequantOf(amax, kind.preset);
  }
  if (kind.scale_format == ScaleFormat::kPow2) {
    scale.dequant = __uint_as_float((__float_as_uint(scale.dequant) + 0x7FFFFF) & 0x7F800000);
  } else if (kind.preset == Preset::kVerl && kind.granularity == Granularity::kBlock) {
    return {scale.dequant, FullRangeReciprocal(scale.dequant)};
  }
  return {scale.dequant, __fdiv_rn(1.0f, scale.dequant)};
}

// Elements of 16 bits as floats: the lower and the upper half of a register.
template <bool kHalf>
__device__ __forceinline__ float LowOf(uint32_t pair) {
  if constexpr (kHalf) return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xFFFF)));
  return __uint_as_float(pair << 16);
}
template <bool kHalf>
__device__ __forceinline__ float HighOf(uint32_t pair) {
  if constexpr (kHalf) return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
  return __uint_as_float(pair & 0xFFFF0000);
}
__device__ __forceinline__ float MagnitudeOf(uint32_t bits, bool is_half) {
  return is_half ? LowOf<true>(bits) : LowOf<false>(bits);
}

// EncodeE4M3 of two floats; `low` gives the lower byte.
__device__ __forceinline__ uint32_t EncodePair(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

template <bool kHalf>
__device__ __forceinline__ uint32_t EncodeFour(uint32_t first, uint32_t second, float multiply) {
  const uint32_t low = EncodePair(__fmul_rn(LowOf<kHalf>(first), multiply), __fmul_rn(HighOf<kHalf>(first), multiply));
  const uint32_t high =
      EncodePair(__fmul_rn(LowOf<kHalf>(second), multiply), __fmul_rn(HighOf<kHalf>(second), multiply));
  return high << 16 | low;
}
template <bool kHalf>
__device__ __forceinline__ uint2 EncodeEight(const uint4& v, float multiply) {
  return {EncodeFour<kHalf>(v.x, v.y, multiply), EncodeFour<kHalf>(v.z, v.w, multiply)};
}

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_SCALE_CUDA_CUH_
