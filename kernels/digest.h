// The digest of encoded bytes: made where bytes are made, checked where they land.
//
// A matrix of `rows` x `row_bytes` is read as 64-bit little-endian words, each row on its own (a row's last word is
// zero-padded), and
//
//     digest = sum over words of  mix(word + (index + 1) * 0x9E3779B97F4A7C15)   mod 2^64
//     index  = row * ceil(row_bytes / 8) + word_in_row        (row counted from the tensor's first row)
//     mix    = MurmurHash3's fmix64
//
// mix is a bijection, so a change inside one word never goes unseen; the index makes moved words visible; the sum is
// the same in any order, so GPU tiles, CPU threads and row ranges add up: a tensor's digest is the sum of its pieces'
// digests wherever it was cut. Scales are read as 32-bit words with index = kScaleIndexBase + position in the tensor's
// scale grid (row-major). It detects accidents, not forgery: it is not a MAC.
// Stateless; safe from any thread.
#ifndef WSYNC_KERNELS_DIGEST_H_
#define WSYNC_KERNELS_DIGEST_H_

#include <cstddef>
#include <cstdint>

namespace wsync {

inline constexpr uint64_t kDigestGolden = 0x9E3779B97F4A7C15ull;
inline constexpr uint64_t kScaleIndexBase = uint64_t{1} << 48;  // beyond any element index: data and scales never alias

constexpr uint64_t DigestMix(uint64_t word, uint64_t index) {
  uint64_t x = word + (index + 1) * kDigestGolden;
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

// Digest of rows [row_begin, row_begin + rows) of a tensor whose rows are `row_bytes` long; `data` points at the first
// of them and rows lie `pitch_bytes` apart (== row_bytes on the wire; larger in a destination). SIMD, one thread.
uint64_t DigestRows(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes, int64_t pitch_bytes);

// Copies the same rows to `out` (row pitch `out_pitch_bytes`) and returns their digest, in one pass. Large copies to
// memory aligned to 64 bytes go past the caches, and are visible to whoever sees a later release by this thread.
uint64_t CopyAndDigestRows(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes,
                           int64_t pitch_bytes, std::byte* out, int64_t out_pitch_bytes);

// Digest of `count` fp32 scales that start at position `first` of the tensor's scale grid.
uint64_t DigestScales(const std::byte* scales, int64_t first, int64_t count);

}  // namespace wsync

#endif  // WSYNC_KERNELS_DIGEST_H_
