// The FP8 encoder on the GPU: one grouped launch encodes a whole bucket, whatever the number of tensors in it.
//
// BuildEncodeTable (pure, host) cuts pieces into items of about 32 KiB, once per plan and sources. The owner of device
// memory copies `records` and `items` there and provides `state_bytes()` of state (any contents); from then on a launch
// takes the bucket's number and its wire memory, builds nothing, allocates nothing and never waits. Per version:
//
//     LaunchEncodeReset   zeroes the state
//     LaunchAmax          only with Granularity::kTensor (else it does nothing): reads those tensors whole
//     LaunchEncode        once per bucket, in any order
//     copy back           the first `results_bytes()` of the state, once: digests and non-finite indices of all pieces
//
// Each stands in a stream, and whoever uses several streams orders them by events: Amax after Reset, every Encode after
// both, the copy after every Encode. Buckets share nothing that they write, so their launches may run at once:
// alternating between two streams hides the tail of one bucket behind the next. One version at a time per state.
//
// LaunchEncode writes codes, scales, raw bytes and the digest table into wire memory in one pass over the source, byte
// for byte what Encode (quantize.h) gives, and leaves padding as it is. The one difference: verl with fp32 block scales
// takes 1/s by div.full.f32 as Triton does, so its codes are the peer's own, and not always those of the host twin. Of
// a piece with a NaN or infinity only the first non-finite index means anything.
//
// It is one kernel for tiles and raw bytes, which is nearly everything, one more only for buckets that hold odd pieces
// (EncodePath), and one small one that publishes the digests.
//
// Alignment: wire memory and data offsets kWireAlign, records and state 16 bytes, sources their element (at 16 bytes
// and with rows of whole 16 bytes, as PyTorch allocates them, they are fast).
//
// Stateless; any thread. REQUIRES: the current device is the one that holds the memory. Errors are those of the launch;
// a kernel's own come, as always, with a later call on its stream.
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

// Rows [row_begin, row_begin + rows) of one tensor: an EncodeTask whose outputs are offsets into a bucket. One for
// every Piece of a plan, in its order.
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

// How a piece is taken. The first three load 16 bytes at a time and read them once.
enum class EncodePath : uint8_t {
  kTile = 1,     // FP8 of 16-bit elements in 128x128 tiles; block and tensor granularity
  kRaw = 2,      // bytes as they are, rows without gaps or padding; less than 16 bytes at the end are an odd item
  kRows = 3,     // FP8 of 16-bit elements in whole rows; channel granularity
  kSlowFp8 = 4,  // FP8, any dtype, shape and alignment; reads twice, the second time from cache
  kSlowRaw = 5,  // bytes as they are, rows padded to digest words, any alignment; where infinities are allowed, and
                 // E8M0 and C64, whatever their alignment
};

// What the kernel branches on: eight bytes, one load.
struct alignas(8) EncodeKind {
  EncodePath path = EncodePath::kRaw;
  Dtype dtype = Dtype::kBF16;
  Granularity granularity = Granularity::kBlock;
  ScaleFormat scale_format = ScaleFormat::kFp32;
  Preset preset = Preset::kDefault;
  uint8_t element_bytes = 0;
  bool allow_infinities = false;  // raw only; false for dtypes that have none
  uint8_t unused[1] = {};
};

// One piece on the device.
struct alignas(16) EncodeRecord {
  uint64_t source = 0;
  uint64_t data_offset = 0;
  uint32_t first_item = 0;
  uint32_t tiles_across = 1;    // items in a row of tiles
  uint32_t across_inverse = 0;  // floor(2^32 / tiles_across), at most 2^32 - 1
  uint32_t row_chunks = 0;      // FP8 of 16-bit elements: 16-byte chunks in a row of the source
  int64_t rows = 0;
  int64_t cols = 0;
  uint64_t raw_chunks = 0;  // raw: whole 16-byte chunks in the piece
  uint64_t first_word = 0;  // digest index of the piece's first word
  int64_t scale_offset = 0;
  uint64_t first_scale = 0;    // digest index of its first scale
  uint64_t first_element = 0;  // flat index in the tensor
  uint32_t item_rows = 0;      // channel granularity: rows per item
  uint32_t piece = 0;
  uint32_t amax_slot = 0;
  uint32_t first_amax_item = 0;
  // An element is non-finite where ((element & mask) + add) & top is not 0; of F64 the upper half decides. For kSlowRaw
  // it only may be: quantize_odd_cuda.cu looks closer.
  uint32_t finite_mask = 0;
  uint32_t finite_add = 0;
  uint32_t finite_top = 0;
  EncodeKind kind;
};
static_assert(sizeof(EncodeRecord) == 128);

// One bucket: items of the first two paths [item_begin, odd_begin), the others [odd_begin, item_end).
struct EncodeSpan {
  uint32_t item_begin = 0;
  uint32_t odd_begin = 0;
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

  // The state: u64 digests[pieces] | u64 nonfinite[pieces] | u32 amax[amax_slots]. The first two are the results.
  int64_t state_bytes() const { return results_bytes() + 4 * amax_slots; }
  int64_t results_bytes() const { return 16 * pieces(); }
  int64_t pieces() const { return static_cast<int64_t>(records.size()); }
};
// REQUIRES: every piece as its fields say and in exactly one bucket; fewer than 2^32 items (7e13 elements) and rows.
EncodeTable BuildEncodeTable(std::span<const EncodePiece> pieces, std::span<const EncodeBucket> buckets);

// First non-finite flat index of a piece from its nonfinite[] entry, or kNoIndex.
constexpr int64_t FirstNonFiniteOf(uint64_t entry) { return entry == 0 ? kNoIndex : static_cast<int64_t>(~entry); }

// Device addresses of a table's arrays, and of its state.
struct EncodeDevice {
  const EncodeRecord* records = nullptr;
  const uint32_t* items = nullptr;
  std::byte* state = nullptr;
};

// Brings the kernels onto the current device, so that no launch has to: one that loads code waits for all that runs
// there, and a transport's kernel may be waiting for this process. Once, before any transport starts.
cudaError_t PreloadEncodeKernels();

cudaError_t LaunchEncodeReset(const EncodeTable& table, const EncodeDevice& device, cudaStream_t stream);
cudaError_t LaunchAmax(const EncodeTable& table, const EncodeDevice& device, cudaStream_t stream);
// How much of the memory's queues an encode fills. kFastest keeps loads of 17 MB in flight on a Hopper, and whoever
// else reads that memory waits behind them: a broadcast that runs beside loses a seventh of its rate. kBesideTransfer
// has two blocks at a time on a multiprocessor, half as many. Two H100, Qwen2.5-7B, in place: publish to committed 28.5
// ms with kFastest and 27.3 ms with kBesideTransfer, the encode itself 9.1 and 9.8 ms.
enum class Pace : uint8_t { kFastest, kBesideTransfer };
// The shared memory that a block takes at Pace::kBesideTransfer and does not use, so that two fit on a multiprocessor
// and no third: 80 KiB of a Hopper's 228 KiB, with which the figures above were measured. Less on GPUs that have less,
// where that much would leave room for one. `per_multiprocessor` and `most_per_block`: as the device says, in bytes.
constexpr int64_t SlowingBytes(int64_t per_multiprocessor, int64_t most_per_block) {
  const int64_t bytes = per_multiprocessor / 3 + (int64_t{4} << 10);
  return bytes < most_per_block ? bytes : most_per_block;
}

// `wire`: the bucket's memory. At most once per bucket between resets.
cudaError_t LaunchEncode(const EncodeTable& table, const EncodeDevice& device, int64_t bucket, std::byte* wire,
                         cudaStream_t stream, Pace pace = Pace::kFastest);

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_QUANTIZE_CUDA_H_
