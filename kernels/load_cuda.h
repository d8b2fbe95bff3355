// The sink's kernels: one grouped launch checks a bucket's digests, one launch copies a bucket or a whole version to
// its destinations.
//
// As in quantize_cuda.h, tables are built once on the host (pure), their `records` and `items` copied to the device by
// the owner of its memory, and launches build nothing, allocate nothing and never wait. Per version:
//
//     LaunchCheckReset    zeroes the state of the checks
//     LaunchCheck         once per bucket that landed, in any order
//     LaunchCopyBucket    in place: after the bucket's check, guarded by what that found
//     LaunchCopyAll       staged: everything at once, after the host has seen that all checks were good
//     copy back           the whole state of the checks, once; or the Mismatches of a bucket (128 bytes) when it counts
//
// Each stands in a stream, and whoever uses several streams orders them by events. Launches of different buckets share
// nothing that they write and may run at once. One version at a time per state.
//
// Alignment: wire memory, images and data offsets 128 bytes, records and state 16 bytes, destinations none.
//
// Stateless; any thread. REQUIRES: the current device is the one that holds tables and wire memory; destinations may be
// any memory that its kernels can write. Errors are those of the launch.
#ifndef WSYNC_KERNELS_LOAD_CUDA_H_
#define WSYNC_KERNELS_LOAD_CUDA_H_

#include <driver_types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace wsync::cuda {

// One piece as it lies in a bucket (plan.h), offsets from the bucket's start.
struct CheckPiece {
  int64_t data_offset = 0;  // a multiple of 128
  int64_t row_begin = 0;
  int64_t rows = 0;          // > 0
  int64_t row_bytes = 0;     // > 0; rows lie without gaps
  int64_t scale_offset = 0;  // a multiple of 4, where there are scales
  int64_t scale_count = 0;
  int64_t first_scale = 0;  // position in the tensor's scale grid
};
struct CheckBucket {
  int64_t piece_begin = 0;  // pieces [piece_begin, piece_end)
  int64_t piece_end = 0;
  int64_t digest_offset = 0;
};

// What a check leaves of one bucket: how many pieces disagree with its digest table, and which, in no order.
struct Mismatches {
  static constexpr uint32_t kMax = 31;
  uint32_t count = 0;          // may exceed kMax
  uint32_t pieces[kMax] = {};  // the first min(count, kMax) are set
};

struct CheckRecord {
  uint64_t data_offset = 0;
  uint64_t scale_offset = 0;
  uint64_t first_word = 0;  // digest indices
  uint64_t first_scale = 0;
  uint64_t rows = 0;
  uint64_t row_bytes = 0;
  uint32_t scale_count = 0;
  uint32_t scales_per_item = 0;
  uint32_t first_item = 0;
  uint32_t is_flat = 0;  // one run of whole digest words (the last may be padded); else taken row by row
};
static_assert(sizeof(CheckRecord) == 64);

struct CheckSpan {
  uint32_t item_begin = 0;
  uint32_t item_end = 0;
  uint32_t piece_begin = 0;
  uint32_t piece_count = 0;
  uint64_t digest_offset = 0;
};

struct CheckTable {
  std::vector<CheckRecord> records;  // by piece
  std::vector<uint32_t> items;       // the piece of every item
  std::vector<CheckSpan> buckets;

  // The state: u64 digests[pieces] | Mismatches[buckets]. The digests are those of what landed.
  int64_t state_bytes() const { return mismatches_offset(static_cast<int64_t>(buckets.size())); }
  int64_t mismatches_offset(int64_t bucket) const {
    return 8 * pieces() + bucket * static_cast<int64_t>(sizeof(Mismatches));
  }
  int64_t pieces() const { return static_cast<int64_t>(records.size()); }
};
// REQUIRES: every piece as its fields say and in exactly one bucket; fewer than 2^32 items and scales per piece.
CheckTable BuildCheckTable(std::span<const CheckPiece> pieces, std::span<const CheckBucket> buckets);

struct CheckDevice {
  const CheckRecord* records = nullptr;
  const uint32_t* items = nullptr;
  std::byte* state = nullptr;
};
// What the check of a bucket leaves, on the device.
inline const Mismatches* MismatchesOf(const CheckTable& table, const CheckDevice& device, int64_t bucket) {
  return reinterpret_cast<const Mismatches*>(device.state + table.mismatches_offset(bucket));
}

// Brings the kernels onto the current device, so that no launch has to; see PreloadEncodeKernels.
cudaError_t PreloadCheckKernels();
cudaError_t PreloadCopyKernels();

cudaError_t LaunchCheckReset(const CheckTable& table, const CheckDevice& device, cudaStream_t stream);
// `wire`: the bucket's memory. At most once per bucket between resets.
cudaError_t LaunchCheck(const CheckTable& table, const CheckDevice& device, int64_t bucket, const std::byte* wire,
                        cudaStream_t stream);

// Rows of bytes, `source_pitch` apart in the bucket, to rows `dest_pitch` apart. Pitches of a single row mean nothing.
struct Copy {
  int64_t source_offset = 0;  // from the bucket's start
  int64_t source_pitch = 0;
  std::byte* dest = nullptr;  // device memory
  int64_t dest_pitch = 0;
  int64_t rows = 0;
  int64_t row_bytes = 0;
};

struct CopyRecord {
  uint64_t source_offset = 0;  // from the start of the image
  uint64_t source_pitch = 0;
  uint64_t dest = 0;
  uint64_t dest_pitch = 0;
  uint64_t rows = 0;
  uint64_t row_bytes = 0;
  uint32_t first_item = 0;
  uint32_t items_per_row = 1;
  uint32_t rows_per_item = 1;
  uint32_t unit_bytes = 1;  // 1, 2, 4, 8 or 16: what divides every address of this copy
};
static_assert(sizeof(CopyRecord) == 64);

struct CopyTable {
  std::vector<CopyRecord> records;
  std::vector<uint32_t> items;         // the record of every item
  std::vector<uint32_t> item_begin;    // of bucket k: items [item_begin[k], item_begin[k + 1])
  std::vector<int64_t> image_offsets;  // of the buckets
};
// Copies [bucket_begin[k], bucket_begin[k + 1]) belong to bucket k, which lies at image_offsets[k] (a multiple of 128)
// in an image of the whole version; bucket_begin has one entry more than there are buckets. Destinations are disjoint:
// the order in which bytes are written is undefined.
CopyTable BuildCopyTable(std::span<const Copy> copies, std::span<const int64_t> bucket_begin,
                         std::span<const int64_t> image_offsets);

struct CopyDevice {
  const CopyRecord* records = nullptr;
  const uint32_t* items = nullptr;
};
// From one bucket's wire memory. With a guard, which lies on the device (MismatchesOf), nothing is written when it
// counts a mismatch at the time the copy runs: a bad bucket never reaches live memory, and the host need not look
// first.
cudaError_t LaunchCopyBucket(const CopyTable& table, const CopyDevice& device, int64_t bucket, const std::byte* wire,
                             cudaStream_t stream, const Mismatches* guard = nullptr);
// From the image of all buckets.
cudaError_t LaunchCopyAll(const CopyTable& table, const CopyDevice& device, const std::byte* image,
                          cudaStream_t stream);

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_LOAD_CUDA_H_
