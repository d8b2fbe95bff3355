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
  uint32_t piece_end;  // of the bucket
  uint8_t* wire;
  Word* digests;    // by piece
  Word* nonfinite;  // by piece
  uint32_t* amax;   // by slot, bits of a float
};

// Not 0: a number in these four bytes may be non-finite; it is, where EncodePath is another than kSlowRaw.
__device__ __forceinline__ uint32_t NonFiniteBits(const EncodeRecord& record, uint32_t bits) {
  return ((bits & record.finite_mask) + record.finite_add) & record.finite_top;
}

__device__ inline bool IsNonFinite(const EncodeRecord& record, Word element) {
  const auto* source = reinterpret_cast<const uint8_t*>(record.source) + element * record.kind.element_bytes;
  switch (record.kind.element_bytes) {
    case 1:
      return NonFiniteBits(record, *source) != 0;
    case 2:
      return NonFiniteBits(record, *reinterpret_cast<const uint16_t*>(source)) != 0;
    case 4:
      return NonFiniteBits(record, *reinterpret_cast<const uint32_t*>(source)) != 0;
    default:
      return NonFiniteBits(record, reinterpret_cast<const uint32_t*>(source)[1]) != 0;
  }
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
  if (record.kind.granularity == Granularity::kTensor && (position != 0 || record.scale_offset == kNoScales)) return 0;
  reinterpret_cast<float*>(args.wire + record.scale_offset)[position] = scale;
  return Mix(__float_as_uint(scale) + DigestOffset(record.first_scale + position));
}

// A thread's share of an item: chunks first, first + step, ... of the piece, in units of 16 source bytes. A chunk of 8
// elements gives one digest word of codes; a raw chunk is two words.
struct Chunks {
  Word first;
  uint32_t step;
  int count;
};

__device__ __forceinline__ Chunks FlatChunks(uint32_t index, Word item_chunks, Word total) {
  const Word first = index * item_chunks + threadIdx.x, end = min((index + Word{1}) * item_chunks, total);
  return {.first = first,
          .step = kThreads,
          .count = first < end ? (static_cast<int>(end - first) + kThreads - 1) / kThreads : 0};
}

__device__ __forceinline__ void ReportChunks(const EncodeArgs& args, const EncodeRecord& record, const Chunks& chunks) {
  const Word elements = static_cast<Word>(kChunkBytes) / record.kind.element_bytes;
  for (int i = 0; i < chunks.count; ++i) {
    ReportNonFinite(args, record, (chunks.first + Word{chunks.step} * i) * elements, elements);
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

// The kernels of quantize_odd_cuda.cu: for odd items, and for the amax of whole tensors.
cudaError_t PreloadOddKernels();
void LaunchOddItems(const EncodeArgs& args, cudaStream_t stream);
void LaunchAmaxItems(const EncodeRecord* records, const uint32_t* items, uint32_t item_begin, uint32_t item_count,
                     uint32_t* amax, cudaStream_t stream);

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_ENCODE_CUDA_CUH_
