// The host side of load_cuda.h: pieces and copies to records and items.
#include <algorithm>
#include <bit>

#include "kernels/digest.h"
#include "kernels/format.h"
#include "kernels/items_cuda.h"
#include "kernels/load_cuda.h"

namespace wsync::cuda {
namespace {

constexpr uint64_t kWidestUnit = 16;

CheckRecord RecordOf(const CheckPiece& piece) {
  CheckRecord record;
  record.data_offset = static_cast<uint64_t>(piece.data_offset);
  record.scale_offset = static_cast<uint64_t>(piece.scale_offset);
  record.first_word = static_cast<uint64_t>(piece.row_begin * CeilDiv(piece.row_bytes, 8));
  record.first_scale = kScaleIndexBase + static_cast<uint64_t>(piece.first_scale);
  record.rows = static_cast<uint64_t>(piece.rows);
  record.row_bytes = static_cast<uint64_t>(piece.row_bytes);
  record.scale_count = static_cast<uint32_t>(piece.scale_count);
  record.is_flat = piece.rows == 1 || piece.row_bytes % 8 == 0;
  return record;
}

// Whole chunks only, in flat pieces: what is left of less than 16 bytes goes with the last item.
int64_t ItemsOf(const CheckPiece& piece, bool is_flat) {
  if (!is_flat) return CeilDiv(piece.rows * CeilDiv(piece.row_bytes, 8), kCheckSlowItemWords);
  return std::max(int64_t{1}, CeilDiv(piece.rows * piece.row_bytes / kChunkBytes, kCheckItemChunks));
}

uint32_t UnitOf(const CopyRecord& r) {
  uint64_t bits = r.source_offset | r.dest | r.row_bytes | kWidestUnit;
  if (r.rows > 1) bits |= r.source_pitch | r.dest_pitch;
  return uint32_t{1} << std::countr_zero(bits);
}

void AppendCopy(CopyTable& table, CopyRecord record) {
  if (record.rows == 0 || record.row_bytes == 0) return;
  record.unit_bytes = UnitOf(record);
  record.first_item = static_cast<uint32_t>(table.items.size());
  const auto row_bytes = static_cast<int64_t>(record.row_bytes), rows = static_cast<int64_t>(record.rows);
  record.items_per_row = static_cast<uint32_t>(CeilDiv(row_bytes, kCopyItemBytes));
  record.rows_per_item = static_cast<uint32_t>(std::max(int64_t{1}, std::min(rows, kCopyItemBytes / row_bytes)));
  const int64_t items = CeilDiv(rows, record.rows_per_item) * record.items_per_row;
  table.items.insert(table.items.end(), static_cast<size_t>(items), static_cast<uint32_t>(table.records.size()));
  table.records.push_back(record);
}

// A long single row loses its odd end, so that the rest goes 16 bytes at a time.
void AppendSplit(CopyTable& table, const CopyRecord& record) {
  const uint64_t odd = record.row_bytes % kWidestUnit;
  const bool worthwhile = record.rows == 1 && odd != 0 && record.row_bytes > 64 * kWidestUnit;
  if (!worthwhile) return AppendCopy(table, record);
  CopyRecord main = record, rest = record;
  main.row_bytes -= odd;
  rest.source_offset += main.row_bytes;
  rest.dest += main.row_bytes;
  rest.row_bytes = odd;
  AppendCopy(table, main);
  AppendCopy(table, rest);
}

CopyRecord RecordOf(const Copy& copy, int64_t image_offset) {
  CopyRecord record;
  record.source_offset = static_cast<uint64_t>(image_offset + copy.source_offset);
  record.source_pitch = static_cast<uint64_t>(copy.source_pitch);
  record.dest = reinterpret_cast<uintptr_t>(copy.dest);
  record.dest_pitch = static_cast<uint64_t>(copy.dest_pitch);
  record.rows = static_cast<uint64_t>(copy.rows);
  record.row_bytes = static_cast<uint64_t>(copy.row_bytes);
  if (copy.source_pitch == copy.row_bytes && copy.dest_pitch == copy.row_bytes) {
    record.row_bytes *= record.rows;
    record.rows = std::min(record.rows, uint64_t{1});
  }
  return record;
}

}  // namespace

CheckTable BuildCheckTable(std::span<const CheckPiece> pieces, std::span<const CheckBucket> buckets) {
  CheckTable table;
  table.records.resize(pieces.size());
  for (const CheckBucket& bucket : buckets) {
    CheckSpan span{.item_begin = static_cast<uint32_t>(table.items.size()),
                   .piece_begin = static_cast<uint32_t>(bucket.piece_begin),
                   .piece_count = static_cast<uint32_t>(bucket.piece_end - bucket.piece_begin),
                   .digest_offset = static_cast<uint64_t>(bucket.digest_offset)};
    for (int64_t i = bucket.piece_begin; i < bucket.piece_end; ++i) {
      const CheckPiece& piece = pieces[static_cast<size_t>(i)];
      CheckRecord& record = table.records[static_cast<size_t>(i)] = RecordOf(piece);
      const int64_t items = ItemsOf(piece, record.is_flat != 0);
      record.first_item = static_cast<uint32_t>(table.items.size());
      record.scales_per_item = static_cast<uint32_t>(CeilDiv(piece.scale_count, items));
      table.items.insert(table.items.end(), static_cast<size_t>(items), static_cast<uint32_t>(i));
    }
    span.item_end = static_cast<uint32_t>(table.items.size());
    table.buckets.push_back(span);
  }
  return table;
}

CopyTable BuildCopyTable(std::span<const Copy> copies, std::span<const int64_t> bucket_begin,
                         std::span<const int64_t> image_offsets) {
  CopyTable table;
  table.image_offsets.assign(image_offsets.begin(), image_offsets.end());
  table.item_begin.push_back(0);
  for (size_t k = 0; k < image_offsets.size(); ++k) {
    for (int64_t i = bucket_begin[k]; i < bucket_begin[k + 1]; ++i) {
      AppendSplit(table, RecordOf(copies[static_cast<size_t>(i)], image_offsets[k]));
    }
    table.item_begin.push_back(static_cast<uint32_t>(table.items.size()));
  }
  return table;
}

}  // namespace wsync::cuda
