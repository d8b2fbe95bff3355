// One E4M3 number: scalar encode and decode, the reference that SIMD and GPU code are held to.
#ifndef WSYNC_KERNELS_FP8_H_
#define WSYNC_KERNELS_FP8_H_

#include <cstdint>

namespace wsync {

inline constexpr float kE4M3Max = 448.0f;

// Round to nearest even, saturating to +-448; NaN gives 0x7F with the sign kept; -0 gives 0x80.
uint8_t EncodeE4M3(float x);
// Exact; codes 0x7F and 0xFF give NaN.
float DecodeE4M3(uint8_t code);

}  // namespace wsync

#endif  // WSYNC_KERNELS_FP8_H_
