// The encode kernel for what quantize_cuda.cu does not take, one block per item: channel granularity in whole rows, and
// paths that are right for everything: FP32, rows that are no multiple of 8 elements, sources off 16 bytes, channels
// too long for registers, the last bytes of raw pieces. Those read a second time, mostly from cache.
#include "kernels/encode_cuda.cuh"

namespace wsync::cuda {
namespace {

struct Shared {
  uint32_t warp_max[kWarps];
  uint32_t row_max[kBlockSize];
  float row_multiply[kBlockSize];
};

// A rectangle that shares one scale. `col` is a multiple of 8: digest words do not cross it.
struct Rect {
  int64_t row, rows;
  int64_t col, cols;
};

__device__ inline float ElementAt(const EncodeRecord& record, int64_t element) {
  if (record.kind.dtype == Dtype::kF32) return reinterpret_cast<const float*>(record.source)[element];
  return MagnitudeOf(reinterpret_cast<const uint16_t*>(record.source)[element], record.kind.dtype == Dtype::kF16);
}

__device__ inline void UnpackEight(const uint4& v, bool is_half, float* x) {
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = is_half ? LowOf<true>(pairs[i]) : LowOf<false>(pairs[i]);
    x[2 * i + 1] = is_half ? HighOf<true>(pairs[i]) : HighOf<false>(pairs[i]);
  }
}

// Elements [element, element + count) as floats, zeros up to 8.
__device__ inline void LoadEight(const EncodeRecord& record, int64_t element, int count, float* x) {
  const uint64_t address = record.source + static_cast<uint64_t>(element) * record.kind.element_bytes;
  if (count == 8 && address % 16 == 0) {
    const auto* source = reinterpret_cast<const uint4*>(address);
    if (record.kind.dtype != Dtype::kF32) return UnpackEight(source[0], record.kind.dtype == Dtype::kF16, x);
    const uint4 low = source[0], high = source[1];
    const uint32_t bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = __uint_as_float(bits[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = i < count ? ElementAt(record, element + i) : 0.0f;
}

// Calls `visit(element, count, word)` for this thread's share of the rectangle's digest words.
template <class Visit>
__device__ inline void ForEachWord(const EncodeRecord& record, const Rect& rect, Visit visit) {
  const uint32_t across = static_cast<uint32_t>((rect.cols + 7) / 8), total = across * static_cast<uint32_t>(rect.rows);
  for (uint32_t i = threadIdx.x; i < total; i += kThreads) {
    const uint32_t row = i / across, word = i - row * across;
    const int64_t in_row = rect.col + int64_t{8} * word, left = rect.cols - int64_t{8} * word;
    const int64_t words_per_row = (record.cols + 7) / 8;
    visit((rect.row + row) * record.cols + in_row, static_cast<int>(left < 8 ? left : 8),
          record.first_word + static_cast<Word>((rect.row + row) * words_per_row + in_row / 8));
  }
}

// The block's largest; `shared` is free again at the next barrier after this.
__device__ inline uint32_t BlockMax(uint32_t x, uint32_t* shared) {
  x = __reduce_max_sync(~0u, x);
  __syncthreads();
  if (LaneId() == 0) shared[WarpId()] = x;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) x = max(x, shared[warp]);
  return x;
}

__device__ inline Word EncodeRect(const EncodeArgs& args, Shared& shared, const EncodeRecord& record, const Rect& rect,
                                  Word position) {
  uint32_t largest = 0;
  ForEachWord(record, rect, [&](int64_t element, int count, Word) {
    float x[8];
    LoadEight(record, element, count, x);
    for (int i = 0; i < 8; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7FFFFFFF);
  });
  largest = BlockMax(largest, shared.warp_max);
  if (largest >= 0x7F800000) {
    ForEachWord(record, rect, [&](int64_t element, int count, Word) {
      ReportNonFinite(args, record, static_cast<Word>(element), static_cast<Word>(count));
    });
  }
  if (record.kind.granularity == Granularity::kTensor) largest = args.amax[record.amax_slot];
  const Scale scale = ScaleOf(__uint_as_float(largest), record.kind);
  Word digest = threadIdx.x == 0 ? WriteScale(args, record, position, scale.dequant) : 0;
  uint8_t* const out = args.wire + record.data_offset;
  ForEachWord(record, rect, [&](int64_t element, int count, Word index) {
    float x[8];
    LoadEight(record, element, count, x);
    Word word = 0;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      word |= Word{EncodePair(__fmul_rn(x[i], scale.multiply), __fmul_rn(x[i + 1], scale.multiply))} << (8 * i);
    }
    StoreBytes(out + element, word, count);
    digest += Mix(word + DigestOffset(index));
  });
  return digest;
}

__device__ inline Word EncodeSlowFp8(const EncodeArgs& args, Shared& shared, const EncodeRecord& record,
                                     uint32_t index) {
  if (record.kind.granularity != Granularity::kChannel) {
    const int64_t row = index / record.tiles_across * kBlockSize, col = index % record.tiles_across * kBlockSize;
    const Rect tile{row, min(kBlockSize, record.rows - row), col, min(kBlockSize, record.cols - col)};
    return EncodeRect(args, shared, record, tile, index);
  }
  const int64_t first = int64_t{index} * record.item_rows;
  Word digest = 0;
  for (int64_t row = first; row < min(first + record.item_rows, record.rows); ++row) {
    digest += EncodeRect(args, shared, record, {row, 1, 0, record.cols}, static_cast<Word>(row));
  }
  return digest;
}

// Takes a thread's largest magnitude into that of its row. A whole warp calls it; `count`: whether there is one.
__device__ __forceinline__ void AddToRowMax(uint32_t* row_max, uint32_t row, uint32_t largest, bool count) {
  const uint32_t first_row = __shfl_sync(~0u, row, 0);
  if (__all_sync(~0u, count && row == first_row)) {
    largest = __reduce_max_sync(~0u, largest);
    count = LaneId() == 0;
  }
  if (count) atomicMax(row_max + row, largest);
}

// Whole rows of 16-bit elements, kept in registers.
template <bool kHalf>
__device__ inline Word EncodeRows(const EncodeArgs& args, Shared& shared, const EncodeRecord& record, uint32_t index) {
  const uint32_t row_chunks = record.row_chunks;
  const Chunks chunks = FlatChunks(index, Word{record.item_rows} * row_chunks, Word{row_chunks} * record.rows);
  const auto row_of = [&](int i) { return (threadIdx.x + i * kThreads) / row_chunks; };
  uint4 v[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    v[i] = i < chunks.count ? LoadOnce(reinterpret_cast<const uint4*>(record.source) + chunks.first + i * kThreads)
                            : uint4{0, 0, 0, 0};
  }
  if (threadIdx.x < kBlockSize) shared.row_max[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    AddToRowMax(shared.row_max, row_of(i), LargerHalf(PairMax(v[i])), i < chunks.count);
  }
  __syncthreads();
  const int64_t first_row = int64_t{index} * record.item_rows;
  Word digest = 0;
  bool finite = true;
  if (threadIdx.x < min(int64_t{record.item_rows}, record.rows - first_row)) {
    const uint32_t largest = shared.row_max[threadIdx.x];
    finite = largest < kNonFiniteBits<kHalf>;
    const Scale scale = ScaleOf(MagnitudeOf(largest, kHalf), record.kind);
    digest = WriteScale(args, record, static_cast<Word>(first_row) + threadIdx.x, scale.dequant);
    shared.row_multiply[threadIdx.x] = scale.multiply;
  }
  if (!__syncthreads_and(finite)) ReportChunks(args, record, chunks);
  uint2* const out = reinterpret_cast<uint2*>(args.wire + record.data_offset) + chunks.first;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (i >= chunks.count) break;
    const uint2 codes = EncodeEight<kHalf>(v[i], shared.row_multiply[row_of(i)]);
    StoreStreaming(out + i * kThreads, codes);
    digest += Mix(WordOf(codes.x, codes.y) + DigestOffset(record.first_word + chunks.first + i * kThreads));
  }
  return digest;
}

// Whether a number of `all` bits is an offender, exactly. `rest`: bits of it that are not in `bits`.
__device__ inline bool IsOffender(const EncodeRecord& record, uint32_t bits, uint32_t all, uint32_t rest = 0) {
  const uint32_t sum = ((bits & record.finite_mask) + record.finite_add) & all, top = record.finite_top & all;
  if ((sum & top) == 0) return false;
  if (record.kind.dtype == Dtype::kF8E8M0) return bits == 0xFF;
  return !(record.kind.allow_infinities && sum == top && rest == 0);  // `top` alone: the magnitude is infinity's
}

// The same for element `at` of the eight bytes that `word` holds.
__device__ inline bool IsOffenderOf(const EncodeRecord& record, Word word, int at) {
  const auto low = static_cast<uint32_t>(word), high = static_cast<uint32_t>(word >> 32);
  switch (record.kind.element_bytes) {
    case 1:
      return IsOffender(record, static_cast<uint32_t>(word >> (8 * at)) & 0xFF, 0xFF);
    case 2:
      return IsOffender(record, static_cast<uint32_t>(word >> (16 * at)) & 0xFFFF, 0xFFFF);
    case 4:
      return IsOffender(record, at == 0 ? low : high, ~0u);
    default:
      if (record.kind.dtype == Dtype::kF64) return IsOffender(record, high, ~0u, low);
      return IsOffender(record, low, ~0u) || IsOffender(record, high, ~0u);
  }
}

// Words [first, end) of a raw piece, counted over its rows one after the other.
__device__ inline Word CopyRawWords(const EncodeArgs& args, const EncodeRecord& record, Word first, Word end) {
  const Word row_bytes = static_cast<Word>(record.cols) * record.kind.element_bytes,
             words_per_row = (row_bytes + 7) / 8;
  const auto* const source = reinterpret_cast<const uint8_t*>(record.source);
  uint8_t* const out = args.wire + record.data_offset;
  Word digest = 0;
  for (Word i = first + threadIdx.x; i < end; i += kThreads) {
    const Word row = i / words_per_row, in_row = 8 * (i - row * words_per_row), at = row * row_bytes + in_row;
    const int bytes = static_cast<int>(min(Word{8}, row_bytes - in_row));
    const Word word = LoadBytes(source + at, bytes);
    StoreBytes(out + at, word, bytes);
    digest += Mix(word + DigestOffset(record.first_word + i));
    const uint32_t low = record.kind.dtype == Dtype::kF64 ? 0 : NonFiniteBits(record, static_cast<uint32_t>(word));
    if ((low | NonFiniteBits(record, static_cast<uint32_t>(word >> 32))) == 0) continue;
    for (int element = 0; element * record.kind.element_bytes < bytes; ++element) {
      if (!IsOffenderOf(record, word, element)) continue;
      atomicMax(args.nonfinite + record.piece, ~(record.first_element + at / record.kind.element_bytes + element));
      break;
    }
  }
  return digest;
}

__device__ inline Word CopySlowRaw(const EncodeArgs& args, const EncodeRecord& record, uint32_t index) {
  const Word row_words = (static_cast<Word>(record.cols) * record.kind.element_bytes + 7) / 8;
  const Word first = Word{index} * kSlowItemWords, total = static_cast<Word>(record.rows) * row_words;
  return CopyRawWords(args, record, first, min(first + kSlowItemWords, total));
}

// What 16-byte chunks leave over at the end of a raw piece.
__device__ inline Word CopyRawTail(const EncodeArgs& args, const EncodeRecord& record) {
  const Word row_words = (static_cast<Word>(record.cols) * record.kind.element_bytes + 7) / 8;
  return CopyRawWords(args, record, 2 * record.raw_chunks, static_cast<Word>(record.rows) * row_words);
}

__device__ inline Word EncodeItem(const EncodeArgs& args, Shared& shared, const EncodeRecord& record, uint32_t index) {
  switch (record.kind.path) {
    case EncodePath::kRows:
      return record.kind.dtype == Dtype::kF16 ? EncodeRows<true>(args, shared, record, index)
                                              : EncodeRows<false>(args, shared, record, index);
    case EncodePath::kSlowFp8:
      return EncodeSlowFp8(args, shared, record, index);
    case EncodePath::kSlowRaw:
      return CopySlowRaw(args, record, index);
    default:
      return CopyRawTail(args, record);
  }
}

__global__ void __launch_bounds__(kThreads, 4) EncodeOddKernel(const __grid_constant__ EncodeArgs args) {
  __shared__ Shared shared;
  const uint32_t item = args.item_begin + blockIdx.x;
  const EncodeRecord record = args.records[args.items[item]];
  AddBlockDigest(EncodeItem(args, shared, record, item - record.first_item), args.digests + record.piece);
}

// Largest magnitudes of whole tensors. One block per item.
__global__ void __launch_bounds__(kThreads)
    AmaxKernel(const EncodeRecord* records, const uint32_t* items, uint32_t item_begin, uint32_t* amax) {
  __shared__ uint32_t block_max[kWarps];
  const EncodeRecord& record = records[items[item_begin + blockIdx.x]];
  const int64_t first = int64_t{item_begin + blockIdx.x - record.first_amax_item} * kAmaxItemElements;
  const int64_t end = min(first + kAmaxItemElements, record.rows * record.cols);
  uint32_t largest = 0;
#pragma unroll 4
  for (int64_t element = first + 8 * int64_t{threadIdx.x}; element < end; element += 8 * kThreads) {
    float x[8];
    LoadEight(record, element, static_cast<int>(min(int64_t{8}, end - element)), x);
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7FFFFFFF);
  }
  largest = BlockMax(largest, block_max);
  if (threadIdx.x == 0) atomicMax(amax + record.amax_slot, largest);
}

}  // namespace

cudaError_t PreloadOddKernels() { return Preload(EncodeOddKernel, AmaxKernel); }

void LaunchOddItems(const EncodeArgs& args, cudaStream_t stream) {
  EncodeOddKernel<<<args.item_end - args.item_begin, kThreads, 0, stream>>>(args);
}

void LaunchAmaxItems(const EncodeRecord* records, const uint32_t* items, uint32_t item_begin, uint32_t item_count,
                     uint32_t* amax, cudaStream_t stream) {
  AmaxKernel<<<item_count, kThreads, 0, stream>>>(records, items, item_begin, amax);
}

}  // namespace wsync::cuda
