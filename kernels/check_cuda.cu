// The digest check of load_cuda.h: one block per 32 KiB item, then a small kernel that compares. A block that waited to
// find out whether it is the last one would hold its place on the multiprocessor for a third of its life.
#include "kernels/device_cuda.cuh"
#include "kernels/load_cuda.h"

namespace wsync::cuda {
namespace {

constexpr int kBatch = 4;  // chunks of one thread in flight; with six blocks per multiprocessor, 96 KiB

struct CheckArgs {
  const CheckRecord* records;
  const uint32_t* items;
  const uint8_t* wire;
  Word* digests;
  Mismatches* mismatches;
  CheckSpan span;
};

// Words [first, end) of a piece, counted over its rows one after the other.
__device__ inline Word DigestWords(const CheckRecord& record, const uint8_t* data, Word first, Word end) {
  const Word words_per_row = (record.row_bytes + 7) / 8;
  Word digest = 0;
  for (Word i = first + threadIdx.x; i < end; i += kThreads) {
    const Word row = i / words_per_row, in_row = 8 * (i - row * words_per_row);
    const int bytes = static_cast<int>(min(Word{8}, record.row_bytes - in_row));
    digest += Mix(LoadBytes(data + row * record.row_bytes + in_row, bytes) + DigestOffset(record.first_word + i));
  }
  return digest;
}

// Chunks [first, end) of a flat piece. Their number is a multiple of a batch but in a piece's last item.
__device__ __forceinline__ Word DigestChunks(const CheckRecord& record, const uint8_t* data, Word first, Word end) {
  const auto* const source = reinterpret_cast<const uint4*>(data);
  Word digest = 0;
  for (Word i = first + threadIdx.x; i < end; i += kThreads * kBatch) {
    uint4 v[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      v[j] = i + j * kThreads < end ? LoadOnce(source + i + j * kThreads) : uint4{0, 0, 0, 0};
    }
    Word offset = DigestOffset(record.first_word + 2 * i);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const Word mixed = Mix(WordOf(v[j].x, v[j].y) + offset) + Mix(WordOf(v[j].z, v[j].w) + offset + kDigestGolden);
      if (i + j * kThreads < end) digest += mixed;
      offset += 2 * kThreads * kDigestGolden;
    }
  }
  return digest;
}

__device__ __forceinline__ Word DigestData(const CheckRecord& record, const uint8_t* data, uint32_t index) {
  if (!record.is_flat) {
    const Word words = record.rows * ((record.row_bytes + 7) / 8), first = Word{index} * kCheckSlowItemWords;
    return DigestWords(record, data, first, min(first + kCheckSlowItemWords, words));
  }
  const Word bytes = record.rows * record.row_bytes, chunks = bytes / kChunkBytes;
  const Word first = Word{index} * kCheckItemChunks, end = min(first + kCheckItemChunks, chunks);
  const Word digest = DigestChunks(record, data, first, end);
  return end == chunks ? digest + DigestWords(record, data, 2 * chunks, (bytes + 7) / 8) : digest;
}

// Every item takes its share of the scales.
__device__ __forceinline__ Word DigestScalesOf(const CheckRecord& record, const uint8_t* wire, uint32_t index) {
  const auto* const scales = reinterpret_cast<const uint32_t*>(wire + record.scale_offset);
  const Word first = Word{index} * record.scales_per_item,
             end = min(first + record.scales_per_item, Word{record.scale_count});
  Word digest = 0;
  for (Word i = first + threadIdx.x; i < end; i += kThreads) {
    digest += Mix(scales[i] + DigestOffset(record.first_scale + i));
  }
  return digest;
}

__global__ void __launch_bounds__(kThreads, 6) CheckKernel(const __grid_constant__ CheckArgs args) {
  const uint32_t item = args.span.item_begin + blockIdx.x, piece = args.items[item];
  const CheckRecord record = args.records[piece];
  const uint32_t index = item - record.first_item;
  const Word digest =
      DigestData(record, args.wire + record.data_offset, index) + DigestScalesOf(record, args.wire, index);
  AddBlockDigest(digest, args.digests + piece);
}

__global__ void __launch_bounds__(kThreads) CompareKernel(const __grid_constant__ CheckArgs args) {
  const auto* const expected = reinterpret_cast<const Word*>(args.wire + args.span.digest_offset);
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x, piece = args.span.piece_begin + i;
  if (i >= args.span.piece_count || args.digests[piece] == expected[i]) return;
  const uint32_t place = atomicAdd(&args.mismatches->count, 1u);
  if (place < Mismatches::kMax) args.mismatches->pieces[place] = piece;
}

}  // namespace

cudaError_t PreloadCheckKernels() { return Preload(CheckKernel, CompareKernel); }

cudaError_t LaunchCheckReset(const CheckTable& table, const CheckDevice& device, cudaStream_t stream) {
  return cudaMemsetAsync(device.state, 0, static_cast<size_t>(table.state_bytes()), stream);
}

cudaError_t LaunchCheck(const CheckTable& table, const CheckDevice& device, int64_t bucket, const std::byte* wire,
                        cudaStream_t stream) {
  const CheckSpan& span = table.buckets[static_cast<size_t>(bucket)];
  if (span.item_begin == span.item_end) return cudaSuccess;
  const CheckArgs args{.records = device.records,
                       .items = device.items,
                       .wire = reinterpret_cast<const uint8_t*>(wire),
                       .digests = reinterpret_cast<Word*>(device.state),
                       .mismatches = reinterpret_cast<Mismatches*>(device.state + table.mismatches_offset(bucket)),
                       .span = span};
  CheckKernel<<<span.item_end - span.item_begin, kThreads, 0, stream>>>(args);
  CompareKernel<<<BlocksFor(span.piece_count), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace wsync::cuda
