// The encode kernel of quantize_cuda.h for tiles and raw bytes, which is nearly everything. A block takes items a grid
// apart and fetches item k+1 into shared memory while it works on item k in registers, so loads are in flight all the
// time. Blocks end after about kItemsPerBlock items, so that a kernel of higher priority (the transport's) gets its
// turn.
#include <algorithm>

#include "kernels/encode_cuda.cuh"
#include "kernels/quantize_cuda.h"

namespace wsync::cuda {
namespace {

constexpr int kBlocksPerMultiprocessor = 4;  // 64 registers each, and 128 KiB of loads in flight
constexpr uint32_t kItemsPerBlock = 8;       // some 50 us

constexpr int kRecordSlots = 4;  // items k-1 (its digest is not flushed yet), k, k+1 and k+2

struct Shared {
  uint4 stage[kSteps][kThreads];  // the next item's source; every thread reads back only what it fetched itself
  EncodeRecord records[kRecordSlots];
  Word warp_digest[2][kWarps];  // two of each: a warp may be an item ahead of another
  uint32_t warp_max[2][kWarps];
};

__device__ __forceinline__ void FetchAsync(void* shared, const void* source, int bytes) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(source), "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void WaitForFetches() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ Chunks TileChunks(const EncodeRecord& record, uint32_t index) {
  const uint32_t tile_row = index / record.tiles_across, tile_col = index - tile_row * record.tiles_across;
  const Word row_chunks = static_cast<Word>(record.cols) / kChunkElements;
  const uint32_t row = threadIdx.x / 16;
  const Word col = Word{tile_col} * 16 + threadIdx.x % 16;
  const int rows_left = static_cast<int>(min(record.rows - int64_t{tile_row} * kBlockSize, kBlockSize)) - row;
  return {.first = (Word{tile_row} * kBlockSize + row) * row_chunks + col,
          .step = 16 * row_chunks,
          .count = col < row_chunks ? max(0, (rows_left + 15) / 16) : 0};
}

__device__ __forceinline__ Chunks ChunksOf(const EncodeRecord& record, uint32_t index) {
  return record.path == EncodePath::kTile ? TileChunks(record, index)
                                          : FlatChunks(index, kItemChunks, RawChunkCount(record));
}

__device__ __forceinline__ void FetchItem(Shared& shared, const EncodeRecord& record, uint32_t index) {
  const Chunks chunks = ChunksOf(record, index);
  const auto* const source = reinterpret_cast<const uint4*>(record.source);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {  // zeros where there is no chunk
    const bool there = i < chunks.count;
    FetchAsync(&shared.stage[i][threadIdx.x], there ? source + chunks.first + i * chunks.step : source,
               there ? static_cast<int>(kChunkBytes) : 0);
  }
}

// Writes the codes of a thread's chunks and returns their digest.
template <bool kHalf>
__device__ __forceinline__ Word EncodeChunks(const EncodeArgs& args, const EncodeRecord& record, const Chunks& chunks,
                                             const uint4* v, float multiply) {
  uint2* out = reinterpret_cast<uint2*>(args.wire + record.data_offset) + chunks.first;
  Word offset = DigestOffset(record.first_word + chunks.first), digest = 0;
  const Word offset_step = chunks.step * kDigestGolden;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint2 codes = EncodeEight<kHalf>(v[i], multiply);
    const Word mixed = Mix(WordOf(codes.x, codes.y) + offset);
    if (i < chunks.count) {
      *out = codes;
      digest += mixed;
    }
    out += chunks.step;
    offset += offset_step;
  }
  return digest;
}

template <bool kHalf>
__device__ __forceinline__ Word EncodeTile(const EncodeArgs& args, const EncodeRecord& record, uint32_t index,
                                           const uint32_t* warp_max, const uint4* v) {
  const Chunks chunks = TileChunks(record, index);
  uint32_t largest = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) largest = max(largest, warp_max[warp]);
  if (largest >= kNonFiniteBits<kHalf>) ReportChunks(args, record, chunks);
  const float amax = record.granularity == Granularity::kTensor ? __uint_as_float(args.amax[record.amax_slot])
                                                                : MagnitudeOf(largest, kHalf);
  const Scale scale = ScaleOf(amax, record);
  const Word digest = EncodeChunks<kHalf>(args, record, chunks, v, scale.multiply);
  return threadIdx.x == 0 ? digest + WriteScale(args, record, index, scale.dequant) : digest;
}

__device__ __forceinline__ Word CopyRaw(const EncodeArgs& args, const EncodeRecord& record, uint32_t index,
                                        const uint4* v) {
  const Chunks chunks = ChunksOf(record, index);
  const uint32_t even_mask = record.finite_mask[0], odd_mask = record.finite_mask[1];
  const uint32_t even_add = record.finite_add[0], odd_add = record.finite_add[1];
  uint4* out = reinterpret_cast<uint4*>(args.wire + record.data_offset) + chunks.first;
  Word offset = DigestOffset(record.first_word + 2 * chunks.first), digest = 0;
  uint32_t carried = 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const Word mixed = Mix(WordOf(v[i].x, v[i].y) + offset) + Mix(WordOf(v[i].z, v[i].w) + offset + kDigestGolden);
    carried |= ((v[i].x & even_mask) + even_add) | ((v[i].y & odd_mask) + odd_add) | ((v[i].z & even_mask) + even_add) |
               ((v[i].w & odd_mask) + odd_add);
    if (i < chunks.count) {
      *out = v[i];
      digest += mixed;
    }
    out += chunks.step;
    offset += 2 * kThreads * kDigestGolden;
  }
  if ((carried & record.finite_top) != 0) ReportChunks(args, record, chunks);
  return digest;
}

// What a block knows of its way through the items. Threads 0 to 7 carry the records, 16 bytes each.
class ItemQueue {
 public:
  __device__ ItemQueue(const EncodeArgs& args, Shared& shared)
      : args_(args), shared_(shared), item_(args.item_begin + blockIdx.x) {
    FetchRecord(0, PieceAhead(0));
    FetchRecord(1, PieceAhead(1));
    piece_ahead_ = PieceAhead(2);
    WaitForFetches();
    __syncthreads();
    FetchItem(shared_, Record(0), Index(0));
  }
  __device__ bool HasItem(uint32_t ahead = 0) const { return item_ + ahead * gridDim.x < args_.item_end; }
  // `ahead` may be -1: the item before.
  __device__ const EncodeRecord& Record(int ahead = 0) const {
    return shared_.records[(turn_ + static_cast<uint32_t>(ahead)) % kRecordSlots];
  }
  __device__ uint32_t Index(uint32_t ahead = 0) const {
    return item_ + ahead * gridDim.x - Record(static_cast<int>(ahead)).first_item;
  }
  __device__ uint32_t turn() const { return turn_; }
  // After a barrier that all reads of the stage lie before.
  __device__ void FetchNext() {
    if (HasItem(1)) FetchItem(shared_, Record(1), Index(1));
    FetchRecord(2, piece_ahead_);
    piece_ahead_ = PieceAhead(3);
  }
  __device__ void Advance() {
    item_ += gridDim.x;
    ++turn_;
  }

 private:
  static constexpr uint32_t kParts = sizeof(EncodeRecord) / 16;

  __device__ uint32_t PieceAhead(uint32_t ahead) const {
    return threadIdx.x < kParts && HasItem(ahead) ? args_.items[item_ + ahead * gridDim.x] : 0;
  }
  __device__ void FetchRecord(uint32_t ahead, uint32_t piece) {
    if (threadIdx.x >= kParts || !HasItem(ahead)) return;
    auto* const slot = reinterpret_cast<uint4*>(&shared_.records[(turn_ + ahead) % kRecordSlots]);
    FetchAsync(slot + threadIdx.x, reinterpret_cast<const uint4*>(args_.records + piece) + threadIdx.x, 16);
  }

  const EncodeArgs& args_;
  Shared& shared_;
  uint32_t item_;
  uint32_t turn_ = 0;
  uint32_t piece_ahead_;  // of the item three turns on, from the last FetchNext
};

__device__ __forceinline__ Word EncodeItem(const EncodeArgs& args, const Shared& shared, const ItemQueue& queue,
                                           const uint4* v) {
  const EncodeRecord& record = queue.Record();
  if (record.path == EncodePath::kRaw) return CopyRaw(args, record, queue.Index(), v);
  const uint32_t* warp_max = shared.warp_max[queue.turn() % 2];
  return record.dtype == Dtype::kF16 ? EncodeTile<true>(args, record, queue.Index(), warp_max, v)
                                     : EncodeTile<false>(args, record, queue.Index(), warp_max, v);
}

// Adds the warps' digests of the item before to its piece. One thread, after a barrier.
__device__ __forceinline__ void FlushDigest(const EncodeArgs& args, const Shared& shared, const ItemQueue& queue) {
  Word digest = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) digest += shared.warp_digest[(queue.turn() - 1) % 2][warp];
  atomicAdd(args.digests + queue.Record(-1).piece, digest);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    EncodeKernel(const __grid_constant__ EncodeArgs args) {
  __shared__ Shared shared;
  ItemQueue queue(args, shared);
  for (; queue.HasItem(); queue.Advance()) {
    WaitForFetches();  // this thread's part of item k, and of the record of item k+1
    uint4 v[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) v[i] = shared.stage[i][threadIdx.x];
    if (queue.Record().path == EncodePath::kTile) {
      uint32_t pair = 0;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) pair = __vmaxu2(pair, PairMax(v[i]));
      const uint32_t largest = __reduce_max_sync(~0u, LargerHalf(pair));
      if (LaneId() == 0) shared.warp_max[queue.turn() % 2][WarpId()] = largest;
    }
    __syncthreads();
    if (threadIdx.x == 0 && queue.turn() > 0) FlushDigest(args, shared, queue);
    queue.FetchNext();
    const Word digest = WarpSum(EncodeItem(args, shared, queue, v));
    if (LaneId() == 0) shared.warp_digest[queue.turn() % 2][WarpId()] = digest;
  }
  __syncthreads();
  if (threadIdx.x == 0) FlushDigest(args, shared, queue);
  PublishDigests(args);
}

// Where the arrays of the state lie; see EncodeTable.
struct State {
  Word* digests;
  Word* nonfinite;
  uint32_t* amax;
  uint32_t* tickets;
};
State StateOf(const EncodeTable& table, std::byte* state) {
  auto* const digests = reinterpret_cast<Word*>(state);
  auto* const amax = reinterpret_cast<uint32_t*>(digests + 2 * table.pieces());
  return {digests, digests + table.pieces(), amax, amax + table.amax_slots};
}

uint32_t ResidentBlocks() {
  static const uint32_t blocks = [] {
    int device = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    return static_cast<uint32_t>(std::max(1, multiprocessors)) * kBlocksPerMultiprocessor;
  }();
  return blocks;
}

}  // namespace

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
                         cudaStream_t stream) {
  const EncodeSpan& span = table.buckets[static_cast<size_t>(bucket)];
  const uint32_t pipelined = span.direct_begin - span.item_begin, direct = span.item_end - span.direct_begin;
  const uint32_t enough = std::max(ResidentBlocks(), (pipelined + kItemsPerBlock - 1) / kItemsPerBlock);
  const uint32_t blocks = std::min(pipelined, enough);
  const State state = StateOf(table, device.state);
  EncodeArgs args{.records = device.records,
                  .items = device.items,
                  .item_begin = span.item_begin,
                  .item_end = span.direct_begin,
                  .wire = reinterpret_cast<uint8_t*>(wire),
                  .digests = state.digests,
                  .nonfinite = state.nonfinite,
                  .amax = state.amax,
                  .ticket = state.tickets + bucket,
                  .digest_table = reinterpret_cast<Word*>(wire + span.digest_offset),
                  .piece_begin = span.piece_begin,
                  .piece_count = span.piece_count,
                  .blocks = blocks + direct};
  if (blocks > 0) EncodeKernel<<<blocks, kThreads, 0, stream>>>(args);
  args.item_begin = span.direct_begin;
  args.item_end = span.item_end;
  if (direct > 0) LaunchDirect(args, stream);
  return cudaGetLastError();
}

}  // namespace wsync::cuda
