#include "kernels/digest.h"

#include <cstring>

#include "kernels/format.h"
#include "kernels/simd.h"

namespace wsync {
namespace {

constexpr int64_t kPrefetchBytes = 4096;  // the best of 512 to 4096, by noisy measurements on one machine

simd::Rows RowsOf(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes, int64_t pitch_bytes) {
  const int64_t words_per_row = CeilDiv(row_bytes, 8);
  simd::Rows job{.source = data, .source_pitch = pitch_bytes, .rows = rows, .cols = row_bytes};
  job.first_word = static_cast<uint64_t>(row_begin * words_per_row);
  job.words_per_row = static_cast<uint64_t>(words_per_row);
  job.ahead = pitch_bytes == row_bytes ? kPrefetchBytes : 0;  // across a gap it would fetch what is not wanted
  return job;
}

// Rows without gaps or padding are one long row: no partial step per row.
void Flatten(simd::Rows& job) {
  job.cols *= job.rows;
  job.rows = 1;
}

}  // namespace

uint64_t DigestRows(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes, int64_t pitch_bytes) {
  simd::Rows job = RowsOf(data, row_begin, rows, row_bytes, pitch_bytes);
  if (row_bytes % 8 == 0 && pitch_bytes == row_bytes) Flatten(job);
  return simd::Active().digest(job);
}

uint64_t CopyAndDigestRows(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes,
                           int64_t pitch_bytes, std::byte* out, int64_t out_pitch_bytes) {
  simd::Rows job = RowsOf(data, row_begin, rows, row_bytes, pitch_bytes);
  job.out = out;
  job.out_pitch = out_pitch_bytes;
  if (row_bytes % 8 == 0 && pitch_bytes == row_bytes && out_pitch_bytes == row_bytes) Flatten(job);
  const bool streamed = simd::StreamingPays(out, job.out_pitch, job.rows * job.cols);
  return streamed ? simd::Active().stream_and_digest(job) : simd::Active().copy_and_digest(job);
}

uint64_t DigestScales(const std::byte* scales, int64_t first, int64_t count) {
  uint64_t digest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t word;
    std::memcpy(&word, scales + 4 * i, sizeof(word));
    digest += DigestMix(word, kScaleIndexBase + static_cast<uint64_t>(first + i));
  }
  return digest;
}

}  // namespace wsync
