// The inner loops behind digest.h and quantize.h: one table of functions per SIMD level, chosen once at run time.
//
// simd_loops.h writes every loop once, as a template over a small set of register operations; simd_portable.cc,
// simd_avx2.cc and simd_avx512.cc supply the operations, each compiled with its own instruction-set flags. Nothing in
// those files has external linkage except the table, so no AVX code can end up in a function that other files share.
// Private to kernels and their tests. The tables are constant; safe from any thread.
#ifndef WSYNC_KERNELS_SIMD_H_
#define WSYNC_KERNELS_SIMD_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace wsync::simd {

// A rectangle of rows that lie a pitch apart, cut into blocks of columns.
struct Rows {
  const std::byte* source = nullptr;
  int64_t source_pitch = 0;  // bytes
  int64_t rows = 0;
  int64_t cols = 0;          // encode: elements; elsewhere: bytes
  int64_t block_cols = 0;    // encode and max, in units of cols; a multiple of 128 elements unless there is one block
  int64_t ahead = 0;         // bytes from what is read to what to prefetch meanwhile; 0 for none. Not for max
  std::byte* out = nullptr;  // encode and copy
  int64_t out_pitch = 0;
  uint64_t first_word = 0;     // digest index of the first row's first word
  uint64_t words_per_row = 0;  // digest words from one row to the next
};
inline constexpr int64_t kMaxBlocks = 8;  // in one Rows: their running maxima stay in the first-level cache

struct Loops {
  const char* name;
  // largest[b] = largest (element & mask) of block b, as unsigned integers of 1, 2 or 4 bytes. `mask` covers 8 bytes.
  void (*max_8)(const Rows&, uint64_t mask, uint32_t* largest);
  void (*max_16)(const Rows&, uint64_t mask, uint32_t* largest);
  void (*max_32)(const Rows&, uint64_t mask, uint32_t* largest);
  // Writes the E4M3 codes of elements times multiply[block] and returns their digest. REQUIRES: finite elements.
  uint64_t (*encode_bf16)(const Rows&, const float* multiply);
  uint64_t (*encode_f16)(const Rows&, const float* multiply);
  uint64_t (*encode_f32)(const Rows&, const float* multiply);
  uint64_t (*digest)(const Rows&);
  uint64_t (*copy_and_digest)(const Rows&);
  uint64_t (*stream_and_digest)(const Rows&);  // copies past the caches. REQUIRES: StreamingPays
  void (*read_2_write_1)(const std::byte* in, std::byte* out, int64_t out_bytes);
};

extern const Loops kPortableLoops;
#if defined(__x86_64__)
extern const Loops kAvx2Loops;    // needs AVX2 and F16C
extern const Loops kAvx512Loops;  // needs AVX-512 F, BW, DQ, VL
#endif

// Whether a copy of `total_bytes` to `out` is better written past the caches: too large to be found there again, and
// aligned for it. Ordinary stores would first read every line they write, a third of the traffic.
inline constexpr int64_t kStreamAlignment = 64, kStreamMinBytes = 1 << 20;
bool StreamingPays(const std::byte* out, int64_t out_pitch, int64_t total_bytes);

// The loops this process uses: the best level that the CPU has and WSYNC_SIMD allows.
const Loops& Active();

// For tests and measurements: uses the named level from now on, in the whole process. False if the CPU lacks it.
bool Use(std::string_view level);

}  // namespace wsync::simd

#endif  // WSYNC_KERNELS_SIMD_H_
