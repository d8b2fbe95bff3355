#include "kernels/streaming.h"

#include "kernels/simd.h"

namespace wsync {

void StreamRead2Write1(const std::byte* in, std::byte* out, int64_t out_bytes) {
  simd::Active().read_2_write_1(in, out, out_bytes);
}

}  // namespace wsync
