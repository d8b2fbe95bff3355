// The encode kernel of quantize_cuda.h for tiles and raw bytes, which is nearly everything: one block per item, which
// stays in registers from the only load to the store. Blocks live some microseconds, so a kernel of higher priority
// (the transport's) gets its turn at once, and no multiprocessor waits for another.
#include "kernels/encode_cuda.cuh"
#include "kernels/quantize_cuda.h"

namespace wsync::cuda {
namespace {

constexpr int kBlocksPerMultiprocessor = 4;  // 64 registers each, and 128 KiB of loads in flight

// Two generations of blocks on 132 multiprocessors, and as many pieces of the smallest experts (96 tiles). A block that
// finds its record in cache waits half as long for its first byte.
constexpr uint32_t kItemsAhead = 2 * 132 * kBlocksPerMultiprocessor;
constexpr uint32_t kPiecesAhead = kItemsAhead / 96 + 1;
constexpr uint32_t kItemsPerLine = 32;  // of 128 bytes

__device__ __forceinline__ void PrefetchLine(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ __forceinline__ EncodeKind LoadKind(const EncodeRecord& record) {
  static_assert(sizeof(EncodeKind) == sizeof(Word));
  return __builtin_bit_cast(EncodeKind, *reinterpret_cast<const Word*>(&record.kind));
}

__device__ __forceinline__ Chunks TileChunks(const EncodeRecord& record, uint32_t index) {
  uint32_t tile_row = __umulhi(index, record.across_inverse), tile_col = index - tile_row * record.tiles_across;
  if (tile_col >= record.tiles_across) {  // the quotient by an inverse rounded down may be one short
    ++tile_row;
    tile_col -= record.tiles_across;
  }
  const uint32_t row = threadIdx.x / 16, col = tile_col * 16 + threadIdx.x % 16;
  const int rows_left = static_cast<int>(min(record.rows - int64_t{tile_row} * kBlockSize, kBlockSize) - row);
  return {.first = (Word{tile_row} * kBlockSize + row) * record.row_chunks + col,
          .step = 16 * record.row_chunks,
          .count = col < record.row_chunks ? max(0, (rows_left + 15) / 16) : 0};
}

// Where a thread's codes go, and what its first word is offset by before it is mixed.
struct TileOutput {
  uint2* out;
  Word offset;
};

// Writes the codes of a thread's chunks and returns their digest. kFull: all chunks are there.
template <bool kHalf, bool kFull>
__device__ __forceinline__ Word EncodeChunks(TileOutput output, const Chunks& chunks, const uint4* v, float multiply) {
  const Word offset_step = Word{chunks.step} * kDigestGolden;
  Word digest = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint2 codes = EncodeEight<kHalf>(v[i], multiply);
    const Word mixed = Mix(WordOf(codes.x, codes.y) + output.offset);
    if (kFull || i < chunks.count) {
      StoreStreaming(output.out, codes);
      digest += mixed;
    }
    output.out += chunks.step;
    output.offset += offset_step;
  }
  return digest;
}

// `largest`: bits of the tile's largest magnitude.
template <bool kHalf>
__device__ __forceinline__ Word EncodeTile(const EncodeArgs& args, const EncodeRecord& record, const EncodeKind& kind,
                                           uint32_t index, uint32_t largest, const TileOutput& output,
                                           const Chunks& chunks, const uint4* v) {
  if (largest >= kNonFiniteBits<kHalf>) ReportChunks(args, record, chunks);
  const float amax = kind.granularity == Granularity::kTensor ? __uint_as_float(args.amax[record.amax_slot])
                                                              : MagnitudeOf(largest, kHalf);
  const Scale scale = ScaleOf(amax, kind);
  const Word digest = chunks.count == kSteps ? EncodeChunks<kHalf, true>(output, chunks, v, scale.multiply)
                                             : EncodeChunks<kHalf, false>(output, chunks, v, scale.multiply);
  return threadIdx.x == 0 ? digest + WriteScale(args, record, index, scale.dequant) : digest;
}

__device__ __forceinline__ Word CopyRaw(const EncodeArgs& args, const EncodeRecord& record, const Chunks& chunks,
                                        const uint4* v) {
  const uint32_t odd_mask = record.finite_mask, odd_add = record.finite_add;
  const uint32_t even_mask = record.kind.element_bytes == 8 ? 0 : odd_mask;
  const uint32_t even_add = record.kind.element_bytes == 8 ? 0 : odd_add;
  uint4* out = reinterpret_cast<uint4*>(args.wire + record.data_offset) + chunks.first;
  Word offset = DigestOffset(record.first_word + 2 * chunks.first), digest = 0;
  uint32_t carried = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const Word mixed = Mix(WordOf(v[i].x, v[i].y) + offset) + Mix(WordOf(v[i].z, v[i].w) + offset + kDigestGolden);
    carried |= ((v[i].x & even_mask) + even_add) | ((v[i].y & odd_mask) + odd_add) | ((v[i].z & even_mask) + even_add) |
               ((v[i].w & odd_mask) + odd_add);
    if (i < chunks.count) {
      StoreStreaming(out, v[i]);
      digest += mixed;
    }
    out += chunks.step;
    offset += 2 * kThreads * kDigestGolden;
  }
  if ((carried & record.finite_top) != 0) ReportChunks(args, record, chunks);
  return digest;
}

// Brings near what blocks to come wait for before they can load: their places in the list of items, and their records.
__device__ __forceinline__ void PrefetchTables(const EncodeArgs& args, uint32_t item, uint32_t piece, uint32_t index) {
  if (threadIdx.x != kThreads - 1) return;
  const uint32_t ahead = item + kItemsAhead;
  if (item % kItemsPerLine == 0 && ahead < args.item_end) PrefetchLine(args.items + ahead);
  if (index == 0 && piece + kPiecesAhead < args.piece_end) PrefetchLine(args.records + piece + kPiecesAhead);
}

// Largest magnitude of what the block holds.
__device__ __forceinline__ uint32_t BlockLargest(const uint4* v) {
  __shared__ uint4 warp_max[kWarps / 4];
  uint32_t pair = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) pair = __vmaxu2(pair, PairMax(v[i]));
  const uint32_t largest = __reduce_max_sync(~0u, LargerHalf(pair));
  if (LaneId() == 0) reinterpret_cast<uint32_t*>(warp_max)[WarpId()] = largest;
  __syncthreads();
  const uint4 a = warp_max[0], b = warp_max[1];
  return max(max(max(a.x, a.y), max(a.z, a.w)), max(max(b.x, b.y), max(b.z, b.w)));
}
static_assert(kWarps == 8);

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    EncodeKernel(const __grid_constant__ EncodeArgs args) {
  const uint32_t item = args.item_begin + blockIdx.x, piece = args.items[item];
  const EncodeRecord& record = args.records[piece];
  const EncodeKind kind = LoadKind(record);
  const uint32_t index = item - record.first_item;
  const bool is_tile = kind.path == EncodePath::kTile;
  const Chunks chunks = is_tile ? TileChunks(record, index) : FlatChunks(index, kItemChunks, record.raw_chunks);
  const auto* const source = reinterpret_cast<const uint4*>(record.source) + chunks.first;
  uint4 v[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    v[i] = i < chunks.count ? LoadOnce(source + Word{chunks.step} * i) : uint4{0, 0, 0, 0};
  }
  PrefetchTables(args, item, piece, index);
  Word digest;
  if (is_tile) {
    // Read before the barrier, while the source is on its way.
    const TileOutput output{.out = reinterpret_cast<uint2*>(args.wire + record.data_offset) + chunks.first,
                            .offset = DigestOffset(record.first_word + chunks.first)};
    const uint32_t largest = BlockLargest(v);
    digest = kind.dtype == Dtype::kF16 ? EncodeTile<true>(args, record, kind, index, largest, output, chunks, v)
                                       : EncodeTile<false>(args, record, kind, index, largest, output, chunks, v);
  } else {
    digest = CopyRaw(args, record, chunks, v);
  }
  AddBlockDigest(digest, args.digests + piece);
}

// A kernel of its own: a block that waited to find out whether it is a bucket's last would hold its place on the
// multiprocessor much longer.
__global__ void __launch_bounds__(kThreads) PublishKernel(const Word* digests, Word* digest_table, uint32_t pieces) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < pieces) digest_table[i] = digests[i];
}

// Where the arrays of the state lie; see EncodeTable.
struct State {
  Word* digests;
  Word* nonfinite;
  uint32_t* amax;
};
State StateOf(const EncodeTable& table, std::byte* state) {
  auto* const digests = reinterpret_cast<Word*>(state);
  return {digests, digests + table.pieces(), reinterpret_cast<uint32_t*>(digests + 2 * table.pieces())};
}

// SlowingBytes of the current device.
cudaError_t FindSlowingBytes(int* bytes) {
  int device = 0, per_multiprocessor = 0, most_per_block = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&most_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  // A block's own share counts as well, and the few hundred bytes that the kernel has for itself.
  *bytes = static_cast<int>(SlowingBytes(per_multiprocessor, most_per_block - (int64_t{2} << 10)));
  return error;
}

}  // namespace

cudaError_t PreloadEncodeKernels() {
  int slowing_bytes = 0;
  cudaError_t error = Preload(EncodeKernel, PublishKernel);
  if (error == cudaSuccess) error = FindSlowingBytes(&slowing_bytes);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(EncodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, slowing_bytes);
  }
  return error == cudaSuccess ? PreloadOddKernels() : error;
}

cudaError_t LaunchEncodeReset(const EncodeTable& table, const EncodeDevice& device, cudaStream_t stream) {
  return cudaMemsetAsync(device.state, 0, static_cast<size_t>(table.state_bytes()), stream);
}

cudaError_t LaunchAmax(const EncodeTable& table, const EncodeDevice& device, cudaStream_t stream) {
  const auto items = static_cast<uint32_t>(table.items.size()) - table.amax_item_begin;
  if (items == 0) return cudaSuccess;
  LaunchAmaxItems(device.records, device.items, table.amax_item_begin, items, StateOf(table, device.state).amax,
                  stream);
  return cudaGetLastError();
}

cudaError_t LaunchEncode(const EncodeTable& table, const EncodeDevice& device, int64_t bucket, std::byte* wire,
                         cudaStream_t stream, Pace pace) {
  const EncodeSpan& span = table.buckets[static_cast<size_t>(bucket)];
  if (span.piece_count == 0) return cudaSuccess;
  const State state = StateOf(table, device.state);
  EncodeArgs args{.records = device.records,
                  .items = device.items,
                  .item_begin = span.item_begin,
                  .item_end = span.odd_begin,
                  .piece_end = span.piece_begin + span.piece_count,
                  .wire = reinterpret_cast<uint8_t*>(wire),
                  .digests = state.digests,
                  .nonfinite = state.nonfinite,
                  .amax = state.amax};
  if (span.odd_begin > span.item_begin) {
    int slowing_bytes = 0;
    if (pace == Pace::kBesideTransfer) {
      if (const cudaError_t error = FindSlowingBytes(&slowing_bytes); error != cudaSuccess) return error;
    }
    EncodeKernel<<<span.odd_begin - span.item_begin, kThreads, slowing_bytes, stream>>>(args);
  }
  args.item_begin = span.odd_begin;
  args.item_end = span.item_end;
  if (span.item_end > span.odd_begin) LaunchOddItems(args, stream);
  PublishKernel<<<BlocksFor(span.piece_count), kThreads, 0, stream>>>(
      state.digests + span.piece_begin, reinterpret_cast<Word*>(wire + span.digest_offset), span.piece_count);
  return cudaGetLastError();
}

}  // namespace wsync::cuda
