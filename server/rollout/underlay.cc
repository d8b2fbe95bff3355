#include "server/rollout/underlay.h"

#include <algorithm>

#include "server/core/hash.h"

namespace wsync {
namespace {

int64_t TableBytes(const Bucket& bucket) {
  return (bucket.piece_end - bucket.piece_begin) * static_cast<int64_t>(sizeof(uint64_t));
}

// Where every bucket's table is kept, and at last where all end. Aligned as what backends copy from.
std::vector<int64_t> KeptAt(const Plan& plan) {
  std::vector<int64_t> at = {0};
  for (const Bucket& bucket : plan.buckets()) at.push_back(RoundUp(at.back() + TableBytes(bucket), kPieceAlign));
  return at;
}

ScatterCopy Run(int64_t source_offset, int32_t handle, int64_t dest_offset, int64_t bytes) {
  return {.source_offset = source_offset,
          .source_pitch = bytes,
          .handle = handle,
          .dest_offset = dest_offset,
          .dest_pitch = bytes,
          .rows = 1,
          .row_bytes = bytes};
}

// Bytes of [begin, end) that `copies` take without a gap from `begin` on. REQUIRES: copies by source_offset.
bool Covers(absl::Span<const ScatterCopy> copies, int64_t begin, int64_t end) {
  auto copy = std::lower_bound(copies.begin(), copies.end(), begin,
                               [](const ScatterCopy& c, int64_t offset) { return c.source_offset < offset; });
  for (; begin < end && copy != copies.end() && copy->source_offset <= begin; ++copy) {
    begin = std::max(begin, copy->source_offset + copy->row_bytes);
  }
  return begin >= end;
}

}  // namespace

Underlay UnderlayOfImage(const Plan& plan, const std::byte* image) {
  Underlay underlay;
  for (const Bucket& bucket : plan.buckets()) {
    underlay.table.bucket_begin.push_back(static_cast<int64_t>(underlay.table.copies.size()));
    underlay.table.copies.push_back(Run(0, 0, 0, bucket.wire_bytes));
    underlay.at.push_back(image + bucket.image_offset);
  }
  underlay.table.bucket_begin.push_back(static_cast<int64_t>(underlay.table.copies.size()));
  return underlay;
}

Underlay UnderlayOfDigestTables(const Plan& plan, const std::byte* kept) {
  const std::vector<int64_t> kept_at = KeptAt(plan);
  Underlay underlay;
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const Bucket& bucket = plan.buckets()[k];
    underlay.table.bucket_begin.push_back(static_cast<int64_t>(underlay.table.copies.size()));
    underlay.table.copies.push_back(Run(0, 0, bucket.digest_offset, TableBytes(bucket)));
    underlay.at.push_back(kept + kept_at[k]);
  }
  underlay.table.bucket_begin.push_back(static_cast<int64_t>(underlay.table.copies.size()));
  return underlay;
}

int64_t BytesOfDigestTables(const Plan& plan) { return KeptAt(plan).back(); }

ScatterTable KeepDigestTables(const Plan& plan, const ScatterTable& table, int32_t handle) {
  const std::vector<int64_t> kept_at = KeptAt(plan);
  ScatterTable kept{.bytes = table.bytes};
  kept.copies.reserve(table.copies.size() + plan.buckets().size());
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const Bucket& bucket = plan.buckets()[k];
    kept.bucket_begin.push_back(static_cast<int64_t>(kept.copies.size()));
    kept.copies.insert(kept.copies.end(), table.copies.begin() + table.bucket_begin[k],
                       table.copies.begin() + table.bucket_begin[k + 1]);
    kept.copies.push_back(Run(bucket.digest_offset, handle, kept_at[k], TableBytes(bucket)));  // behind all pieces
  }
  kept.bucket_begin.push_back(static_cast<int64_t>(kept.copies.size()));
  return kept;
}

bool TakesEveryByte(const Plan& plan, const ScatterTable& table) {
  for (const ScatterCopy& copy : table.copies) {
    if (copy.rows != 1) return false;  // slices of rows
  }
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const absl::Span<const ScatterCopy> copies(table.copies.data() + table.bucket_begin[k],
                                               static_cast<size_t>(table.bucket_begin[k + 1] - table.bucket_begin[k]));
    for (const Piece& piece : plan.PiecesOf(plan.buckets()[k])) {
      if (!Covers(copies, piece.data_offset, piece.data_offset + piece.data_bytes)) return false;
      if (!Covers(copies, piece.scale_offset, piece.scale_offset + piece.scale_bytes)) return false;
    }
  }
  return true;
}

}  // namespace wsync
