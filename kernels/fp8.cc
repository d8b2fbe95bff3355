#include "kernels/fp8.h"

#include <bit>
#include <cmath>
#include <limits>

namespace wsync {

uint8_t EncodeE4M3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  uint32_t magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return sign | 0x7F;
  if (magnitude >= std::bit_cast<uint32_t>(kE4M3Max)) return sign | 0x7E;
  if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {
    // Subnormal codes count steps of 2^-9, the last bit of 2^14: the addition rounds to nearest even.
    const float rounded = std::bit_cast<float>(magnitude) + 0x1p14f;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(0x1p14f));
  }
  // 20 mantissa bits go; half of the last kept bit, less one unless that bit is odd, rounds to nearest even.
  magnitude += 0x7FFFF + (magnitude >> 20 & 1);
  return sign | static_cast<uint8_t>((magnitude >> 20) - (120 << 3));  // exponent bias 127 becomes 7
}

float DecodeE4M3(uint8_t code) {
  const int exponent = code >> 3 & 0xF, mantissa = code & 7;
  if ((code & 0x7F) == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace wsync
