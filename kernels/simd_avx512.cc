// AVX-512 F, BW, DQ and VL: 64 elements a step.
#include <immintrin.h>

#include "kernels/simd_loops.h"

namespace wsync::simd {
namespace {

struct Avx512 {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int64_t kStep = 64;

  static Int Load(const std::byte* p) { return _mm512_loadu_si512(p); }
  static void Store(std::byte* p, Int v) { _mm512_storeu_si512(p, v); }
  static void Stream(std::byte* p, Int v) { _mm512_stream_si512(reinterpret_cast<Int*>(p), v); }
  static void Fence() { _mm_sfence(); }
  static Int Set32(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Int Set64(uint64_t x) { return _mm512_set1_epi64(static_cast<long long>(x)); }
  static Float SetF(float x) { return _mm512_set1_ps(x); }
  static Int AsInt(Float x) { return _mm512_castps_si512(x); }
  static Float AsFloat(Int x) { return _mm512_castsi512_ps(x); }

  static Int And(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int Xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static Int Select(Int mask, Int a, Int b) { return _mm512_ternarylogic_epi32(mask, a, b, 0xCA); }
  static Int Add32(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int Add64(Int a, Int b) { return _mm512_add_epi64(a, b); }
  static Int Mul64(Int a, uint64_t b) { return _mm512_mullo_epi64(a, Set64(b)); }
  static Int Min32(Int a, Int b) { return _mm512_min_epu32(a, b); }
  static Int Max32(Int a, Int b) { return _mm512_max_epu32(a, b); }
  template <int kBits>
  static Int Shr32(Int a) {
    return _mm512_srli_epi32(a, kBits);
  }
  template <int kBits>
  static Int Shr64(Int a) {
    return _mm512_srli_epi64(a, kBits);
  }
  static Float MulF(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float AddF(Float a, Float b) { return _mm512_add_ps(a, b); }
  template <class Element>
  static Int Max(Int a, Int b) {
    if constexpr (sizeof(Element) == 1) return _mm512_max_epu8(a, b);
    if constexpr (sizeof(Element) == 2) return _mm512_max_epu16(a, b);
    return _mm512_max_epu32(a, b);
  }

  // A register of BF16 pairs is two registers of fp32 lanes, even and odd elements; Pack puts them side by side again.
  struct Bf16 {
    static constexpr int64_t kBytes = 2;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 2; ++i) {
        const Int pairs = Avx512::Load(p + i * kStep);
        x[2 * i] = AsFloat(_mm512_slli_epi32(pairs, 16));
        x[2 * i + 1] = AsFloat(And(pairs, Set32(0xFFFF0000)));
      }
    }
    static Int Pack(const Int c[4]) {
      const Int low = _mm512_or_si512(c[0], _mm512_slli_epi32(c[1], 16));
      const Int high = _mm512_or_si512(c[2], _mm512_slli_epi32(c[3], 16));
      const Int order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
      return _mm512_permutexvar_epi64(order, _mm512_packus_epi16(low, high));
    }
  };
  struct F32 {
    static constexpr int64_t kBytes = 4;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 4; ++i) x[i] = AsFloat(Avx512::Load(p + i * kStep));
    }
    static Int Pack(const Int c[4]) {  // packs work within 128-bit parts; the permutation gathers them
      const Int packed = _mm512_packus_epi16(_mm512_packus_epi32(c[0], c[1]), _mm512_packus_epi32(c[2], c[3]));
      const Int order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      return _mm512_permutexvar_epi32(order, packed);
    }
  };
  struct F16 {
    static constexpr int64_t kBytes = 2;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * kStep / 2)));
      }
    }
    static Int Pack(const Int c[4]) { return F32::Pack(c); }
  };
};

}  // namespace

extern const Loops kAvx512Loops = MakeLoops<Avx512>("avx512");

}  // namespace wsync::simd
