// The FP8 encoder on the GPU: one launch encodes a whole bucket, whatever the number of tensors in it (a second one
// takes what is not of 16-bit elements, 16-byte aligned and in tiles or raw).
//
// BuildEncodeTable (pure, host) cuts pieces into items of about 32 KiB, once per plan and sources. The owner of device
// memory copies `records` and `items` there and provides `state_bytes` of state; from then on a launch takes the
// bucket's number and its wire memory, builds nothing and allocates nothing. Per version:
//
//     LaunchEncodeReset   zeroes the state
//     LaunchAmax          only with Granularity::kTensor: reads those tensors whole, before the first bucket
//     LaunchEncode        once per bucket, any order, any streams that run after the two above
//
// A launch writes codes, scales, raw bytes and the digest table into wire memory in one pass over the source, byte for
// byte what Encode (quantize.h) gives, and leaves padding as it is. The one difference: verl with fp32 block scales
// takes 1/s by div.full.f32 as Triton does, so its codes are the peer's own, and not always those of the host twin.
// Digests and first non-finite indices of all pieces stay in the state, for one copy back per version.
//
// Stateless; any thread. REQUIRES: the current device is the one that holds the memory.
#ifndef WSYNC_KERNELS_QUANTIZE_CUDA_H_
#define WSYNC_KERNELS_QUANTIZE_CUDA_H_

#include <driver_types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/format.h"
#include "kernels/quantize.h"

namespace wsync::cuda {

inline constexpr int64_t kWireAlign = 128;  // of wire memory and of data offsets, as the plan lays them out
inline constexpr int64_t kNoScales = -1;

// Rows [row_begin, row_begin + rows) of one tensor: an EncodeTask whose outputs are offsets into a bucket.
struct EncodePiece {
  const std::byte* source = nullptr;  // device memory, element [row_begin, 0]; naturally aligned for dtype
  Dtype dtype = Dtype::kBF16;
  Recipe recipe;
  int64_t row_begin = 0;             // for Granularity::kBlock a multiple of kBlockSize
  int64_t rows = 0;                  // > 0
  int64_t cols = 0;                  // > 0
  int64_t data_offset = 0;           // a multiple of kWireAlign
  int64_t scale_offset = kNoScales;  // a multiple of 4; kNoScales: raw, or kTensor without row 0
  int64_t amax_slot = 0;             // Granularity::kTensor: one number per tensor, shared by its pieces
};
struct EncodeBucket {
  int64_t piece_begin = 0;  // pieces [piece_begin, piece_end)
  int64_t piece_end = 0;
  int64_t digest_offset = 0;  // of the table of one u64 per piece; a multiple of 8
};

// How a piece is taken. The first two are pipelined; the first three load 16 bytes at a time and read them once.
enum class EncodePath : uint8_t {
  kTile = 1,     // FP8 of 16-bit elements in 128x128 tiles; block and tensor granularity
  kRaw = 2,      // bytes as they are, rows without gaps or padding; less than 16 bytes at the end are a direct item
  kRows = 3,     // FP8 of 16-bit elements in whole rows; channel granularity
  kSlowFp8 = 4,  // FP8, any dtype, shape and alignment; reads twice, the second time from cache
  kSlowRaw = 5,  // bytes as they are, rows padded to digest words, any alignment
};

// One piece on the device.
struct alignas(16) EncodeRecord {
  uint64_t source = 0;
  uint64_t data_offset = 0;
  int64_t scale_offset = 0;
  uint64_t first_word = 0;     // digest index of the piece's first word
  uint64_t first_scale = 0;    // digest index of its first scale
  uint64_t first_element = 0;  // flat index in the tensor
  int64_t rows = 0;
  int64_t cols = 0;
  uint32_t first_item = 0;
  uint32_t first_amax_item = 0;
  uint32_t tiles_across = 1;  // items in a row of tiles
  uint32_t item_rows = 0;     // channel granularity: rows per item
  uint32_t piece = 0;
  uint32_t amax_slot = 0;
  // An element is non-finite where ((element & mask) + add) & top is not 0: [0] and [1] for even and odd 32-bit words.
  uint32_t finite_mask[2] = {0, 0};
  uint32_t finite_add[2] = {0, 0};
  uint32_t finite_top = 0;
  EncodePath path = EncodePath::kRaw;
  Dtype dtype = Dtype::kBF16;
  Granularity granularity = Granularity::kBlock;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  Preset preset = Preset::kDefault;
  uint8_t element_bytes = 0;
  uint8_t unused[14] = {};
};
static_assert(sizeof(EncodeRecord) == 128);

// One bucket: pipelined items [item_begin, direct_begin), the others [direct_begin, item_end).
struct EncodeSpan {
  uint32_t item_begin = 0;
  uint32_t direct_begin = 0;
  uint32_t item_end = 0;
  uint32_t piece_begin = 0;
  uint32_t piece_count = 0;
  uint64_t digest_offset = 0;
};

struct EncodeTable {
  std::vector<EncodeRecord> records;  // by piece
  std::vector<uint32_t> items;        // the piece of every item; those of LaunchAmax follow those of the buckets
  std::vector<EncodeSpan> buckets;
  uint32_t amax_item_begin = 0;
  int64_t amax_slots = 0;

  // The state: u64 digests[pieces] | u64 nonfinite[pieces] | u32 amax[amax_slots] | u32 tickets[buckets].
  int64_t state_bytes() const;
  int64_t pieces() const { return static_cast<int64_t>(records.size()); }
};
// REQUIRES: every piece as its fields say and in exactly one bucket; fewer than 2^32 items (7e13 elements).
EncodeTable BuildEncodeTable(std::span<const EncodePiece> pieces, std::span<const EncodeBucket> buckets);

// First non-finite flat index of a piece from its nonfinite[] entry, or kNoIndex.
constexpr int64_t FirstNonFiniteOf(uint64_t entry) { return entry == 0 ? kNoIndex : static_cast<int64_t>(~entry); }

// Device addresses of a table's arrays, and of its state.
struct EncodeDevice {
  const EncodeRecord* records = nullptr;
  const uint32_t* items = nullptr;
  std::byte* state = nullptr;  // 16-byte aligned
};

cudaError_t LaunchEncodeReset(const EncodeTable& table, const EncodeDevice& device, cudaStream_t stream);
cudaError_t LaunchAmax(const EncodeTable& table, const EncodeDevice& device, cudaStream_t stream);
// `wire`: the bucket's memory, kWireAlign-aligned. At most once per bucket between resets.
cudaError_t LaunchEncode(const EncodeTable& table, const EncodeDevice& device, int64_t bucket, std::byte* wire,
                         cudaStream_t stream);

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_QUANTIZE_CUDA_H_
