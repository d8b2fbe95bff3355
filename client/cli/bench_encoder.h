// How fast one core encodes, beside how fast the same core moves the same bytes at all.
#ifndef WSYNC_CLIENT_CLI_BENCH_ENCODER_H_
#define WSYNC_CLIENT_CLI_BENCH_ENCODER_H_

#include <string>

#include "kernels/format.h"

namespace wsync::cli {

struct EncoderResult {
  double encode_bytes_per_second = 0;   // BF16 input, codes, scales, digest and non-finite check
  double ceiling_bytes_per_second = 0;  // the same input rate of a loop that reads 2 bytes and writes 1
  std::string simd;                     // "avx512", ...
  double Ratio() const { return encode_bytes_per_second / ceiling_bytes_per_second; }
};

// One thread, `megabytes` of random BF16 (far larger than caches), the best of `repeats` runs of each, in turns.
EncoderResult MeasureEncoder(const Recipe& recipe, int megabytes, int repeats);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_BENCH_ENCODER_H_
