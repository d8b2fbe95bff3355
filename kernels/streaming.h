// The memory ceiling that the encoder is measured against. Stateless; safe from any thread.
#ifndef WSYNC_KERNELS_STREAMING_H_
#define WSYNC_KERNELS_STREAMING_H_

#include <cstddef>
#include <cstdint>

namespace wsync {

// Reads `2 * out_bytes` bytes and writes `out_bytes`, the traffic of BF16 to FP8, with next to no arithmetic: out is
// the exclusive or of pairs of registers. Ordinary stores, as the encoder's, and the same SIMD level.
void StreamRead2Write1(const std::byte* in, std::byte* out, int64_t out_bytes);

}  // namespace wsync

#endif  // WSYNC_KERNELS_STREAMING_H_
