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

// A rectangle of rows that lie a pitch apart; no field beyond those that a loop names is read.
struct Rows {
  const std::byte* source = nullptr;
  int64_t source_pitch = 0;  // bytes
  int64_t rows = 0;
  int64_t cols = 0;  // elements in encode, bytes elsewhere
  std::byte* out = nullptr;
  int64_t out_pitch = 0;
  uint64_t first_word = 0;     // digest index of the first row's first word
  uint64_t words_per_row = 0;  // digest words from one row to the next
  float multiply = 0;          // encode: what elements are multiplied with before rounding
};

struct Loops {
  const char* name;
  // Largest (element & mask) as an unsigned integer of 1, 2 or 4 bytes; `mask` repeats every 8 bytes of a row.
  uint32_t (*max_8)(const Rows&, uint64_t mask);
  uint32_t (*max_16)(const Rows&, uint64_t mask);
  uint32_t (*max_32)(const Rows&, uint64_t mask);
  // Writes E4M3 codes and returns their digest. REQUIRES: finite elements.
  uint64_t (*encode_bf16)(const Rows&);
  uint64_t (*encode_f16)(const Rows&);
  uint64_t (*encode_f32)(const Rows&);
  uint64_t (*digest)(const Rows&);
  uint64_t (*copy_and_digest)(const Rows&);
  void (*read_2_write_1)(const std::byte* in, std::byte* out, int64_t out_bytes);
};

extern const Loops kPortableLoops;
#if defined(__x86_64__)
extern const Loops kAvx2Loops;    // needs AVX2 and F16C
extern const Loops kAvx512Loops;  // needs AVX-512 F, BW, DQ, VL
#endif

// The loops this process uses: the best level that the CPU has and WSYNC_SIMD allows.
const Loops& Active();

// For tests and measurements: uses the named level from now on, in the whole process. False if the CPU lacks it.
bool Use(std::string_view level);

}  // namespace wsync::simd

#endif  // WSYNC_KERNELS_SIMD_H_
