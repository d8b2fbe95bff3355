#include "kernels/quantize.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "kernels/digest.h"
#include "kernels/simd.h"

namespace wsync {
namespace {

using simd::Rows;

// What is looked through and then encoded or copied from cache, where blocks do not say it: a third of a common
// first-level cache.
constexpr int64_t kChunkBytes = 16 << 10;

// Blocks taken together, side by side: long runs per row keep the hardware's prefetching alive, and two strips of fp32
// still fit a second-level cache of 1 MiB.
constexpr int64_t kStripCols = simd::kMaxBlocks * kBlockSize;

// How non-finite numbers of a dtype look: (element & mask) >= limit, read as `width`-byte unsigned integers.
struct FiniteRule {
  int64_t width;  // of what is compared: an fp64 is judged by its upper half, the lower is masked to zero
  uint64_t mask;  // repeated over 8 bytes
  uint32_t limit;
};

std::optional<FiniteRule> FiniteRuleOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF8E4M3:
      return FiniteRule{1, 0x7F7F7F7F7F7F7F7F, 0x7F};
    case Dtype::kF8E5M2:
      return FiniteRule{1, 0x7F7F7F7F7F7F7F7F, 0x7C};
    case Dtype::kF16:
      return FiniteRule{2, 0x7FFF7FFF7FFF7FFF, 0x7C00};
    case Dtype::kBF16:
      return FiniteRule{2, 0x7FFF7FFF7FFF7FFF, 0x7F80};
    case Dtype::kF32:
      return FiniteRule{4, 0x7FFFFFFF7FFFFFFF, 0x7F800000};
    case Dtype::kF64:
      return FiniteRule{4, 0x7FFFFFFF00000000, 0x7FF00000};
    case Dtype::kC64:
      return FiniteRule{4, 0x7FFFFFFF7FFFFFFF, 0x7F800000};
    case Dtype::kF8E8M0:  // an exponent: no sign, no infinity
      return FiniteRule{1, 0xFFFFFFFFFFFFFFFF, 0xFF};
    default:
      return std::nullopt;
  }
}

// Largest magnitudes of the blocks, as bits of the dtype. Here cols count bytes.
void MaxBits(const Rows& bytes, const FiniteRule& rule, uint32_t* largest) {
  const simd::Loops& loops = simd::Active();
  const auto max = rule.width == 1 ? loops.max_8 : rule.width == 2 ? loops.max_16 : loops.max_32;
  max(bytes, rule.mask, largest);
}

uint32_t MaxBits(Rows bytes, const FiniteRule& rule) {
  uint32_t largest = 0;
  bytes.block_cols = bytes.cols;
  if (bytes.cols > 0) MaxBits(bytes, rule, &largest);
  return largest;
}

float MagnitudeOf(uint32_t bits, Dtype dtype) {
  if (dtype == Dtype::kBF16) return std::bit_cast<float>(bits << 16);
  if (dtype == Dtype::kF32) return std::bit_cast<float>(bits);
  if (bits < 0x400) return static_cast<float>(bits) * 0x1p-24f;  // subnormal FP16
  return std::bit_cast<float>((bits << 13) + (112u << 23));      // exponent bias 15 becomes 127
}

// Bits of an infinity without its sign; 0 where the dtype has none.
uint64_t InfinityBits(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF8E5M2:
      return 0x7C;
    case Dtype::kF16:
      return 0x7C00;
    case Dtype::kBF16:
      return 0x7F80;
    case Dtype::kF32:
      return 0x7F800000;
    case Dtype::kF64:
      return 0x7FF0000000000000;
    default:
      return 0;
  }
}

// The search once something may be wrong: flat index of the first offender among `count` elements, or kNoIndex.
int64_t FirstNonFinite(const std::byte* source, Dtype dtype, int64_t count, bool allow_infinities) {
  const FiniteRule rule = *FiniteRuleOf(dtype);
  const int64_t bytes = DtypeBytes(dtype);
  constexpr int64_t kStride = 2048;
  for (int64_t first = 0; first < count; first += kStride) {
    const int64_t end = std::min(first + kStride, count);
    const Rows stride{.source = source + first * bytes, .rows = 1, .cols = (end - first) * bytes};
    if (MaxBits(stride, rule) < rule.limit) continue;
    for (int64_t i = first; i < end; ++i) {
      const NumberKind kind = KindOfNumber(source + i * bytes, dtype);
      if (kind == NumberKind::kNan || (kind != NumberKind::kFinite && !allow_infinities)) return i;
    }
  }
  return kNoIndex;
}

// Calls `visit(row, rows, col, cols)` over [0, rows) x [0, cols) in row-major order until it gives false; whole rows
// where they fit in a chunk. Column cuts are multiples of 128 elements: digest words and SIMD steps stay whole.
template <class Visit>
bool ForEachChunk(int64_t rows, int64_t cols, int64_t element_bytes, Visit visit) {
  const int64_t chunk = kChunkBytes / element_bytes;
  const int64_t row_step = cols == 0 ? rows : std::max(int64_t{1}, chunk / cols);
  for (int64_t row = 0; row < rows; row += row_step) {
    for (int64_t col = 0; col < cols; col += chunk) {
      if (!visit(row, std::min(row_step, rows - row), col, std::min(chunk, cols - col))) return false;
    }
  }
  return true;
}

// One Encode call: knows the task's layout and adds up its digest. Positions are relative to the task.
class Encoder {
 public:
  explicit Encoder(const EncodeTask& task)
      : task_(task), element_bytes_(DtypeBytes(task.dtype)), rule_(FiniteRuleOf(task.dtype)) {}

  EncodeResult Run() {
    if (EncodeAll()) return {.digest = digest_};
    const int64_t first = FirstNonFinite(task_.source, task_.dtype, task_.rows * task_.cols, AllowsInfinities());
    return {.digest = 0, .first_nonfinite = task_.row_begin * task_.cols + first};
  }

 private:
  // False at the first non-finite number.
  bool EncodeAll() {
    if (!task_.recipe.fp8) return Raw();
    if (task_.recipe.granularity == Granularity::kBlock) return Blocks();
    return task_.recipe.granularity == Granularity::kChannel ? Channels() : Tensor();
  }

  bool Raw() {
    const int64_t row_bytes = task_.cols * element_bytes_;
    const bool streamed = simd::StreamingPays(task_.data, row_bytes, task_.rows * row_bytes);
    const auto copy = streamed ? simd::Active().stream_and_digest : simd::Active().copy_and_digest;
    return ForEachChunk(task_.rows, task_.cols, element_bytes_, [&](int64_t r, int64_t n, int64_t c, int64_t m) {
      Rows job = SourceBytes(r, n, c, m);
      if (rule_ && MaxBits(job, *rule_) >= rule_->limit && !HoldsOnlyWhatIsAllowed(job)) return false;
      job.ahead = rule_ ? n * m * element_bytes_ : 0;  // the chunk itself is in cache by now
      Place(job, r, c, element_bytes_);
      digest_ += copy(job);
      return true;
    });
  }

  bool AllowsInfinities() const { return !task_.recipe.fp8 && task_.recipe.allow_infinities; }

  bool HoldsOnlyWhatIsAllowed(const Rows& job) const {
    if (!AllowsInfinities()) return false;
    for (int64_t row = 0; row < job.rows; ++row) {
      const std::byte* source = job.source + row * job.source_pitch;
      if (FirstNonFinite(source, task_.dtype, job.cols / element_bytes_, true) != kNoIndex) return false;
    }
    return true;
  }

  bool Blocks() {
    for (int64_t r = 0; r < task_.rows; r += kBlockSize) {
      for (int64_t c = 0; c < task_.cols; c += kStripCols) {
        if (!Strip(r, std::min(kBlockSize, task_.rows - r), c, std::min(kStripCols, task_.cols - c))) return false;
      }
    }
    return true;
  }

  bool Strip(int64_t row, int64_t rows, int64_t col, int64_t cols) {
    uint32_t largest[simd::kMaxBlocks];
    float multiply[simd::kMaxBlocks];
    Rows bytes = SourceBytes(row, rows, col, cols);
    bytes.block_cols = kBlockSize * element_bytes_;
    MaxBits(bytes, *rule_, largest);
    for (int64_t block = 0; block * kBlockSize < cols; ++block) {
      if (largest[block] >= rule_->limit) return false;
      const Scale scale = ScaleOf(MagnitudeOf(largest[block], task_.dtype));
      multiply[block] = scale.multiply;
      const int64_t grid_cols = ScaleCols(Granularity::kBlock, task_.cols);
      WriteScale(row / kBlockSize * grid_cols + col / kBlockSize + block, scale.dequant);
    }
    // Meanwhile to the next strip: to the right, or else the first one of the next 128 rows.
    const int64_t next = col + cols < task_.cols ? cols : kBlockSize * task_.cols - col;
    EncodeRows(row, rows, col, cols, multiply, kBlockSize,
               row + rows < task_.rows || col + cols < task_.cols ? next : 0);
    return true;
  }

  bool Channels() {
    for (int64_t r = 0; r < task_.rows; ++r) {
      const uint32_t largest = MaxBits(SourceBytes(r, 1, 0, task_.cols), *rule_);
      if (largest >= rule_->limit) return false;
      const Scale scale = ScaleOf(MagnitudeOf(largest, task_.dtype));
      WriteScale(r, scale.dequant);
      EncodeRows(r, 1, 0, task_.cols, &scale.multiply, task_.cols, task_.cols);
    }
    return true;
  }

  bool Tensor() {
    const Scale scale = ScaleOf(task_.tensor_amax);
    if (task_.scales != nullptr) WriteScale(0, scale.dequant);
    return ForEachChunk(task_.rows, task_.cols, element_bytes_, [&](int64_t r, int64_t n, int64_t c, int64_t m) {
      if (MaxBits(SourceBytes(r, n, c, m), *rule_) >= rule_->limit) return false;
      EncodeRows(r, n, c, m, &scale.multiply, m, n * m);
      return true;
    });
  }

  Scale ScaleOf(float amax) const { return ScaleFor(amax, task_.recipe.preset, task_.recipe.scale_format); }

  Rows SourceBytes(int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    return {.source = task_.source + (row * task_.cols + col) * element_bytes_,
            .source_pitch = task_.cols * element_bytes_,
            .rows = rows,
            .cols = cols * element_bytes_};
  }

  // Sets where the job's rows go, at `out_bytes` per element, and the digest position of their first word.
  void Place(Rows& job, int64_t row, int64_t col, int64_t out_bytes) const {
    const int64_t words_per_row = CeilDiv(task_.cols * out_bytes, 8);
    job.out = task_.data + (row * task_.cols + col) * out_bytes;
    job.out_pitch = task_.cols * out_bytes;
    job.first_word = static_cast<uint64_t>((task_.row_begin + row) * words_per_row + col * out_bytes / 8);
    job.words_per_row = static_cast<uint64_t>(words_per_row);
  }

  // `ahead`: elements from those encoded to those wanted next.
  void EncodeRows(int64_t row, int64_t rows, int64_t col, int64_t cols, const float* multiply, int64_t block_cols,
                  int64_t ahead) {
    const simd::Loops& loops = simd::Active();
    Rows job = SourceBytes(row, rows, col, cols);
    job.cols = cols;
    job.block_cols = block_cols;
    job.ahead = ahead * element_bytes_;
    Place(job, row, col, 1);
    const auto encode = task_.dtype == Dtype::kBF16  ? loops.encode_bf16
                        : task_.dtype == Dtype::kF16 ? loops.encode_f16
                                                     : loops.encode_f32;
    digest_ += encode(job, multiply);
  }

  // `index` counts from the task's first scale.
  void WriteScale(int64_t index, float scale) {
    std::byte* out = task_.scales + index * static_cast<int64_t>(sizeof(scale));
    std::memcpy(out, &scale, sizeof(scale));
    const Granularity g = task_.recipe.granularity;
    const int64_t first = g == Granularity::kTensor ? 0 : ScaleRows(g, task_.row_begin) * ScaleCols(g, task_.cols);
    digest_ += DigestScales(out, first + index, 1);
  }

  const EncodeTask& task_;
  const int64_t element_bytes_;
  const std::optional<FiniteRule> rule_;
  uint64_t digest_ = 0;
};

}  // namespace

NumberKind KindOfNumber(const std::byte* value, Dtype dtype) {
  if (dtype == Dtype::kC64) {
    return std::max(KindOfNumber(value, Dtype::kF32), KindOfNumber(value + sizeof(float), Dtype::kF32));
  }
  const std::optional<FiniteRule> rule = FiniteRuleOf(dtype);
  if (!rule.has_value()) return NumberKind::kFinite;
  const int64_t bytes = DtypeBytes(dtype);
  uint64_t bits = 0;
  std::memcpy(&bits, value, static_cast<size_t>(bytes));
  const auto compared = static_cast<uint32_t>((bits & rule->mask) >> (8 * (bytes - rule->width)));
  const uint64_t all = ~uint64_t{0} >> (64 - 8 * rule->width);
  if ((compared & all) < rule->limit) return NumberKind::kFinite;
  const uint64_t sign = uint64_t{1} << (8 * bytes - 1);
  if ((bits & ~sign) != InfinityBits(dtype)) return NumberKind::kNan;
  return (bits & sign) != 0 ? NumberKind::kMinusInfinity : NumberKind::kInfinity;
}

std::string_view NumberKindName(NumberKind kind) {
  constexpr std::string_view kNames[] = {"finite", "infinity", "-infinity", "NaN"};
  return kNames[static_cast<size_t>(kind)];
}

EncodeResult Encode(const EncodeTask& task) { return Encoder(task).Run(); }

AbsMaxResult AbsMax(const std::byte* source, Dtype dtype, int64_t row_begin, int64_t rows, int64_t cols) {
  const FiniteRule rule = *FiniteRuleOf(dtype);
  const int64_t count = rows * cols;
  const uint32_t bits = MaxBits(Rows{.source = source, .rows = 1, .cols = count * DtypeBytes(dtype)}, rule);
  if (bits < rule.limit) return {.amax = MagnitudeOf(bits, dtype)};
  return {.amax = 0, .first_nonfinite = row_begin * cols + FirstNonFinite(source, dtype, count, false)};
}

}  // namespace wsync
