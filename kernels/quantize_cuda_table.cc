// The host side of quantize_cuda.h: pieces to records and items.
#include <algorithm>

#include "kernels/digest.h"
#include "kernels/items_cuda.h"
#include "kernels/quantize_cuda.h"

namespace wsync::cuda {
namespace {

constexpr int64_t kMaxTileCols = int64_t{1} << 30;  // the kernel counts 16 rows' chunks in 32 bits

bool IsHalfWidth(Dtype dtype) { return dtype == Dtype::kBF16 || dtype == Dtype::kF16; }

bool AllowsInfinities(const EncodePiece& piece) {
  const bool has_some = piece.dtype != Dtype::kF8E4M3 && piece.dtype != Dtype::kF8E8M0;
  return !piece.recipe.fp8 && piece.recipe.allow_infinities && has_some;  // asked only where SetFiniteRule knows a rule
}

// Whether the finite rule alone says that a number is an offender; else each that it suspects is looked at, by
// kSlowRaw.
bool RuleIsExact(const EncodePiece& piece) {
  return !AllowsInfinities(piece) && piece.dtype != Dtype::kF8E8M0 && piece.dtype != Dtype::kC64;
}

EncodePath PathOf(const EncodePiece& piece) {
  const bool aligned = reinterpret_cast<uintptr_t>(piece.source) % kChunkBytes == 0;
  if (!piece.recipe.fp8) {
    const bool flat = piece.rows == 1 || piece.cols * DtypeBytes(piece.dtype) % 8 == 0;
    return aligned && flat && RuleIsExact(piece) ? EncodePath::kRaw : EncodePath::kSlowRaw;
  }
  if (!aligned || !IsHalfWidth(piece.dtype) || piece.cols % kChunkElements != 0 || piece.cols > kMaxTileCols) {
    return EncodePath::kSlowFp8;
  }
  if (piece.recipe.granularity != Granularity::kChannel) return EncodePath::kTile;
  return piece.cols <= kItemElements ? EncodePath::kRows : EncodePath::kSlowFp8;
}

// As FiniteRuleOf in quantize.cc, in the form without comparisons: adding `add` carries into the top bit of an element
// exactly when its masked magnitude reaches that of infinity (E4M3: of NaN).
void SetFiniteRule(EncodeRecord& record) {
  const auto set = [&](uint32_t mask, uint32_t add, uint32_t top) {
    record.finite_mask = mask;
    record.finite_add = add;
    record.finite_top = top;
  };
  switch (record.kind.dtype) {
    case Dtype::kF8E4M3:
      return set(0x7F7F7F7F, 0x01010101, 0x80808080);
    case Dtype::kF8E5M2:
      return set(0x7F7F7F7F, 0x04040404, 0x80808080);
    case Dtype::kF16:
      return set(0x7FFF7FFF, 0x04000400, 0x80008000);
    case Dtype::kBF16:
      return set(0x7FFF7FFF, 0x00800080, 0x80008000);
    case Dtype::kF32:
      return set(0x7FFFFFFF, 0x00800000, 0x80000000);
    case Dtype::kC64:
      return set(0x7FFFFFFF, 0x00800000, 0x80000000);
    case Dtype::kF64:  // of its upper half
      return set(0x7FFFFFFF, 0x00100000, 0x80000000);
    case Dtype::kF8E8M0:  // lets 0x7F through, which is 1, beside NaN
      return set(0x7F7F7F7F, 0x01010101, 0x80808080);
    default:
      return;
  }
}

void SetIndices(EncodeRecord& record, const EncodePiece& piece) {
  const Granularity g = piece.recipe.granularity;
  const int64_t row_bytes = piece.cols * (piece.recipe.fp8 ? 1 : DtypeBytes(piece.dtype));
  const int64_t first_scale = g == Granularity::kTensor ? 0 : ScaleRows(g, piece.row_begin) * ScaleCols(g, piece.cols);
  record.first_word = static_cast<uint64_t>(piece.row_begin * CeilDiv(row_bytes, 8));
  record.first_scale = kScaleIndexBase + static_cast<uint64_t>(first_scale);
  record.first_element = static_cast<uint64_t>(piece.row_begin * piece.cols);
}

int64_t RawBytes(const EncodeRecord& record) { return record.rows * record.cols * record.kind.element_bytes; }

EncodeRecord RecordOf(const EncodePiece& piece) {
  EncodeRecord record;
  record.source = reinterpret_cast<uintptr_t>(piece.source);
  record.data_offset = static_cast<uint64_t>(piece.data_offset);
  record.scale_offset = piece.scale_offset;
  record.rows = piece.rows;
  record.cols = piece.cols;
  record.kind.path = PathOf(piece);
  record.kind.dtype = piece.dtype;
  record.kind.granularity = piece.recipe.granularity;
  record.kind.scale_format = piece.recipe.scale_format;
  record.kind.preset = piece.recipe.preset;
  record.kind.element_bytes = static_cast<uint8_t>(DtypeBytes(piece.dtype));
  record.kind.allow_infinities = AllowsInfinities(piece);
  record.amax_slot = static_cast<uint32_t>(piece.amax_slot);
  if (record.kind.path == EncodePath::kTile || record.kind.path == EncodePath::kRows) {
    record.row_chunks = static_cast<uint32_t>(record.cols / kChunkElements);
  }
  record.raw_chunks = static_cast<uint64_t>(RawBytes(record) / kChunkBytes);
  SetIndices(record, piece);
  SetFiniteRule(record);
  return record;
}

// How many items a piece gives; sets the fields that say how they are cut.
int64_t CutIntoItems(EncodeRecord& record) {
  switch (record.kind.path) {
    case EncodePath::kRaw:
      return CeilDiv(static_cast<int64_t>(record.raw_chunks), kItemChunks);
    case EncodePath::kSlowRaw:
      return CeilDiv(record.rows * CeilDiv(record.cols * record.kind.element_bytes, 8), kSlowItemWords);
    default:
      break;
  }
  if (record.kind.granularity == Granularity::kChannel) {
    const int64_t fitting = std::max(int64_t{1}, kItemElements / record.cols);
    record.item_rows = static_cast<uint32_t>(std::min(fitting, kBlockSize));
    return CeilDiv(record.rows, record.item_rows);
  }
  record.tiles_across = static_cast<uint32_t>(CeilDiv(record.cols, kBlockSize));
  record.across_inverse =
      static_cast<uint32_t>(std::min((uint64_t{1} << 32) / record.tiles_across, uint64_t{UINT32_MAX}));
  return CeilDiv(record.rows, kBlockSize) * record.tiles_across;
}

void AppendItems(EncodeTable& table, const EncodeRecord& record, int64_t count) {
  table.items.insert(table.items.end(), static_cast<size_t>(count), record.piece);
}

bool IsCommon(const EncodeRecord& record) {
  return record.kind.path == EncodePath::kTile || record.kind.path == EncodePath::kRaw;
}

EncodeSpan CutBucket(EncodeTable& table, std::span<const EncodePiece> pieces, const EncodeBucket& bucket) {
  EncodeSpan span{.item_begin = static_cast<uint32_t>(table.items.size()),
                  .piece_begin = static_cast<uint32_t>(bucket.piece_begin),
                  .piece_count = static_cast<uint32_t>(bucket.piece_end - bucket.piece_begin),
                  .digest_offset = static_cast<uint64_t>(bucket.digest_offset)};
  std::vector<EncodeRecord*> odd;
  for (int64_t i = bucket.piece_begin; i < bucket.piece_end; ++i) {
    EncodeRecord& record = table.records[static_cast<size_t>(i)] = RecordOf(pieces[static_cast<size_t>(i)]);
    record.piece = static_cast<uint32_t>(i);
    record.first_item = static_cast<uint32_t>(table.items.size());
    if (IsCommon(record)) AppendItems(table, record, CutIntoItems(record));
    const bool has_tail = record.kind.path == EncodePath::kRaw && RawBytes(record) % kChunkBytes != 0;
    if (!IsCommon(record) || has_tail) odd.push_back(&record);
  }
  span.odd_begin = static_cast<uint32_t>(table.items.size());
  for (EncodeRecord* record : odd) {
    const bool is_tail = record->kind.path == EncodePath::kRaw;
    if (!is_tail) record->first_item = static_cast<uint32_t>(table.items.size());
    AppendItems(table, *record, is_tail ? 1 : CutIntoItems(*record));
  }
  span.item_end = static_cast<uint32_t>(table.items.size());
  return span;
}

}  // namespace

EncodeTable BuildEncodeTable(std::span<const EncodePiece> pieces, std::span<const EncodeBucket> buckets) {
  EncodeTable table;
  table.records.resize(pieces.size());
  for (const EncodeBucket& bucket : buckets) table.buckets.push_back(CutBucket(table, pieces, bucket));
  table.amax_item_begin = static_cast<uint32_t>(table.items.size());
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!pieces[i].recipe.fp8 || pieces[i].recipe.granularity != Granularity::kTensor) continue;
    EncodeRecord& record = table.records[i];
    record.first_amax_item = static_cast<uint32_t>(table.items.size());
    AppendItems(table, record, CeilDiv(record.rows * record.cols, kAmaxItemElements));
    table.amax_slots = std::max(table.amax_slots, pieces[i].amax_slot + 1);
  }
  return table;
}

}  // namespace wsync::cuda
