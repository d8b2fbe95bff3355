// Any CPU: 16 elements a step, in the compiler's generic vectors, which it lowers to what the baseline has.
#include <bit>

#include "kernels/simd_loops.h"

namespace wsync::simd {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire's byte order is assumed to be the machine's");

struct Portable {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint16_t Words16 __attribute__((vector_size(16)));
  typedef uint16_t Halves __attribute__((vector_size(8)));
  typedef uint32_t Int __attribute__((vector_size(16)));
  typedef uint64_t Words64 __attribute__((vector_size(16)));
  typedef float Float __attribute__((vector_size(16)));
  static constexpr int64_t kStep = 16;

  static Int Load(const std::byte* p) {
    Int v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void Store(std::byte* p, Int v) { std::memcpy(p, &v, sizeof(v)); }
  static void Stream(std::byte* p, Int v) { Store(p, v); }
  static void Fence() {}
  static Int Set32(uint32_t x) { return Int{x, x, x, x}; }
  static Int Set64(uint64_t x) { return (Int)Words64{x, x}; }
  static Float SetF(float x) { return Float{x, x, x, x}; }
  static Int AsInt(Float x) { return (Int)x; }
  static Float AsFloat(Int x) { return (Float)x; }

  static Int And(Int a, Int b) { return a & b; }
  static Int Xor(Int a, Int b) { return a ^ b; }
  static Int Select(Int mask, Int a, Int b) { return (mask & a) | (~mask & b); }
  static Int Add32(Int a, Int b) { return a + b; }
  static Int Add64(Int a, Int b) { return (Int)((Words64)a + (Words64)b); }
  static Int Mul64(Int a, uint64_t b) { return (Int)((Words64)a * Words64{b, b}); }
  static Int Min32(Int a, Int b) { return a < b ? a : b; }
  static Int Max32(Int a, Int b) { return a > b ? a : b; }
  template <int kBits>
  static Int Shr32(Int a) {
    return a >> kBits;
  }
  template <int kBits>
  static Int Shr64(Int a) {
    return (Int)((Words64)a >> kBits);
  }
  static Float MulF(Float a, Float b) { return a * b; }
  static Float AddF(Float a, Float b) { return a + b; }
  template <class Element>
  static Int Max(Int a, Int b) {
    typedef Element Lanes __attribute__((vector_size(16)));
    return (Int)((Lanes)a > (Lanes)b ? (Lanes)a : (Lanes)b);
  }

  // As in the wider levels: even and odd elements apart, then side by side again.
  struct Bf16 {
    static constexpr int64_t kBytes = 2;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 2; ++i) {
        const Int pairs = Portable::Load(p + i * kStep);
        x[2 * i] = AsFloat(pairs << 16);
        x[2 * i + 1] = AsFloat(pairs & Set32(0xFFFF0000));
      }
    }
    static Int Pack(const Int c[4]) { return PackWords(c[0] | c[1] << 16, c[2] | c[3] << 16); }
  };
  struct F32 {
    static constexpr int64_t kBytes = 4;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 4; ++i) x[i] = AsFloat(Portable::Load(p + i * kStep));
    }
    static Int Pack(const Int c[4]) { return PackWords(LowHalves(c[0], c[1]), LowHalves(c[2], c[3])); }
  };
  struct F16 {
    static constexpr int64_t kBytes = 2;
    static void Load(const std::byte* p, Float x[4]) {
      for (int i = 0; i < 4; ++i) {
        Halves halves;
        std::memcpy(&halves, p + i * kStep / 2, sizeof(halves));
        const Int wide = __builtin_convertvector(halves, Int);
        // Exponent bias 15 becomes 127 by a product that is exact for subnormals, too. Infinities do not come here.
        const Float magnitude = AsFloat((wide & 0x7FFF) << 13) * 0x1p112f;
        x[i] = AsFloat(AsInt(magnitude) | (wide & 0x8000) << 16);
      }
    }
    static Int Pack(const Int c[4]) { return F32::Pack(c); }
  };

  static Int LowHalves(Int a, Int b) {
    return (Int)__builtin_shufflevector((Words16)a, (Words16)b, 0, 2, 4, 6, 8, 10, 12, 14);
  }
  static Int PackWords(Int a, Int b) {
    return (Int)__builtin_shufflevector((Bytes)a, (Bytes)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
};

}  // namespace

extern const Loops kPortableLoops = MakeLoops<Portable>("portable");

}  // namespace wsync::simd
