// What the two encode kernels share: arguments, chunks, how non-finite numbers, scales and digests are reported.
#ifndef WSYNC_KERNELS_ENCODE_CUDA_CUH_
#define WSYNC_KERNELS_ENCODE_CUDA_CUH_

#include "kernels/device_cuda.cuh"
#include "kernels/quantize_cuda.h"
#include "kernels/scale_cuda.cuh"

namespace wsync::cuda {

struct EncodeArgs {
  const EncodeRecord* records;
  const uint32_t* items;
  uint32_t item_begin;  // of this launch
  uint32_t item_end;
  uint8_t* wire;
  Word* digests;    // by piece
  Word* nonfinite;  // by piece
  uint32_t* amax;   // by slot, bits of a float
  uint32_t* ticket;
  Word* digest_table;  // in wire memory
  uint32_t piece_begin;
  uint32_t piece_count;
  uint32_t blocks;  // of all launches for the bucket
};

__device__ inline bool IsNonFinite(const EncodeRecord& record, Word element) {
  const auto* source = reinterpret_cast<const uint8_t*>(record.source) + element * record.element_bytes;
  if (record.element_bytes == 8) {
    const uint32_t bits = reinterpret_cast<const uint32_t*>(source)[1];
    return (((bits & record.finite_mask[1]) + record.finite_add[1]) & record.finite_top) != 0;
  }
  const uint32_t bits = record.element_bytes == 1   ? *source
                        : record.element_bytes == 2 ? *reinterpret_cast<const uint16_t*>(source)
                                                    : *reinterpret_cast<const uint32_t*>(source);
  return (((bits & record.finite_mask[0]) + record.finite_add[0]) & record.finite_top) != 0;
}

// Reports the first non-finite number of `count` elements, if there is one. Only called once something is wrong: it
// reads memory again.
__device__ inline void ReportNonFinite(const EncodeArgs& args, const EncodeRecord& record, Word element, Word count) {
  for (Word i = element; i < element + count; ++i) {
    if (!IsNonFinite(record, i)) continue;
    atomicMax(args.nonfinite + record.piece, ~(record.first_element + i));
    return;
  }
}

// Writes the piece's scale number `position`, if it has one there, and returns its digest. One thread.
__device__ __forceinline__ Word WriteScale(const EncodeArgs& args, const EncodeRecord& record, Word position,
                                           float scale) {
  if (record.granularity == Granularity::kTensor && (position != 0 || record.scale_offset == kNoScales)) return 0;
  reinterpret_cast<float*>(args.wire + record.scale_offset)[position] = scale;
  return Mix(__float_as_uint(scale) + DigestOffset(record.first_scale + position));
}

// A thread's share of an item: chunks first, first + step, ... of the piece, in units of 16 source bytes. A chunk of 8
// elements gives one digest word of codes; a raw chunk is two words.
struct Chunks {
  Word first;
  Word step;
  int count;
};

__device__ __forceinline__ Chunks FlatChunks(uint32_t index, Word item_chunks, Word total) {
  const Word first = index * item_chunks + threadIdx.x, end = min((index + Word{1}) * item_chunks, total);
  return {.first = first,
          .step = kThreads,
          .count = first < end ? (static_cast<int>(end - first) + kThreads - 1) / kThreads : 0};
}

__device__ __forceinline__ Word RawChunkCount(const EncodeRecord& record) {
  return static_cast<Word>(record.rows) * static_cast<Word>(record.cols) * record.element_bytes / kChunkBytes;
}

__device__ __forceinline__ void ReportChunks(const EncodeArgs& args, const EncodeRecord& record, const Chunks& chunks) {
  const Word elements = static_cast<Word>(kChunkBytes) / record.element_bytes;
  for (int i = 0; i < chunks.count; ++i) {
    ReportNonFinite(args, record, (chunks.first + i * chunks.step) * elements, elements);
  }
}

// Largest magnitudes of the two halves of four registers, and of the halves of one.
__device__ __forceinline__ uint32_t PairMax(const uint4& v) {
  const uint32_t mask = 0x7FFF7FFF;
  return __vmaxu2(__vmaxu2(v.x & mask, v.y & mask), __vmaxu2(v.z & mask, v.w & mask));
}
__device__ __forceinline__ uint32_t LargerHalf(uint32_t pair) { return max(pair & 0xFFFF, pair >> 16); }

// Bits of the smallest magnitude that is not finite.
template <bool kHalf>
inline constexpr uint32_t kNonFiniteBits = kHalf ? 0x7C00 : 0x7F80;

// The last block of a bucket's launches copies the digests into wire memory. Begins with a barrier.
__device__ __forceinline__ void PublishDigests(const EncodeArgs& args) {
  if (!IsLastBlock(args.ticket, args.blocks)) return;
  for (uint32_t i = threadIdx.x; i < args.piece_count; i += kThreads) {
    args.digest_table[i] = __ldcg(args.digests + args.piece_begin + i);
  }
}

// The kernels of quantize_direct_cuda.cu: for items that are not pipelined, and for the amax of whole tensors.
void LaunchDirect(const EncodeArgs& args, cudaStream_t stream);
void LaunchAmaxItems(const EncodeRecord* records, const uint32_t* items, uint32_t item_begin, uint32_t item_count,
                     uint32_t* amax, cudaStream_t stream);

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_ENCODE_CUDA_CUH_
