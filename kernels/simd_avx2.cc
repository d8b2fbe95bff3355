// AVX2 and F16C: 32 elements a step.
#include <immintrin.h>

#include "kernels/simd_loops.h"

namespace wsync::simd {
namespace {

struct Avx2 {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int64_t kStep = 32;

  static Int Load(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void Store(std::byte* p, Int v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void Stream(std::byte* p, Int v) { _mm256_stream_si256(reinterpret_cast<Int*>(p), v); }
  static void Fence() { _mm_sfence(); }
  static Int Set32(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Int Set64(uint64_t x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }
  static Float SetF(float x) { return _mm256_set1_ps(x); }
  static Int AsInt(Float x) { return _mm256_castps_si256(x); }
  static Float AsFloat(Int x) { return _mm256_castsi256_ps(x); }

  static Int And(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int Xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static Int Select(Int mask, Int a, Int b) {
    return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
  }
  static Int Add32(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int Add64(Int a, Int b) { return _mm256_add_epi64(a, b); }
  static Int Mul64(Int a, uint64_t b) {  // modulo 2^64, so high * high drops out
    const Int low = Set64(b & 0xFFFFFFFF), high = Set64(b >> 32);
    const Int cross = Add64(_mm256_mul_epu32(Shr64<32>(a), low), _mm256_mul_epu32(a, high));
    return Add64(_mm256_mul_epu32(a, low), _mm256_slli_epi64(cross, 32));
  }
  static Int Min32(Int a, Int b) { return _mm256_min_epu32(a, b); }
  static Int Max32(Int a, Int b) { return _mm256_max_epu32(a, b); }
  template <int kBits>
  static Int Shr32(Int a) {
    return _mm256_srli_epi32(a, kBits);
  }
  template <int kBits>
  static Int Shr64(Int a) {
    return _mm256_srli_epi64(a, kBits);
  }
  static Float MulF(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float AddF(Float a, Float b) { return _mm256_add_ps(a, b); }
  template <class Element>
  static Int Max(Int a, Int b) {
    if constexpr (sizeof(Element) == 1) return _mm256_max_epu8(a, b);
    if constexpr (sizeof(Element) == 2) return _mm256_max_epu16(a, b);
    return _mm256_max_epu32(a, b);
  }

  // A register of BF16 pairs is two registers of fp32 lanes, even and odd elements; Pack puts them side by side again.
  struct Bf16 {
    static constexpr int64_t kBytes = 2;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 2; ++i) {
        const Int pairs = Avx2::Load(p + i * kStep);
        x[2 * i] = AsFloat(_mm256_slli_epi32(pairs, 16));
        x[2 * i + 1] = AsFloat(And(pairs, Set32(0xFFFF0000)));
      }
    }
    static Int Pack(const Int c[4]) {
      const Int low = _mm256_or_si256(c[0], _mm256_slli_epi32(c[1], 16));
      const Int high = _mm256_or_si256(c[2], _mm256_slli_epi32(c[3], 16));
      return _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), _MM_SHUFFLE(3, 1, 2, 0));
    }
  };
  struct F32 {
    static constexpr int64_t kBytes = 4;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 4; ++i) x[i] = AsFloat(Avx2::Load(p + i * kStep));
    }
    static Int Pack(const Int c[4]) {  // packs work within 128-bit parts; the permutation gathers them
      const Int packed = _mm256_packus_epi16(_mm256_packus_epi32(c[0], c[1]), _mm256_packus_epi32(c[2], c[3]));
      return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
  };
  struct F16 {
    static constexpr int64_t kBytes = 2;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * kStep / 2)));
      }
    }
    static Int Pack(const Int c[4]) { return F32::Pack(c); }
  };
};

}  // namespace

extern const Loops kAvx2Loops = MakeLoops<Avx2>("avx2");

}  // namespace wsync::simd
