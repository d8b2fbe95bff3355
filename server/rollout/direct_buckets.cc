#include "server/rollout/direct_buckets.h"

#include <cstdint>
#include <optional>

namespace wsync {
namespace {

// Bytes [0, bytes) of a bucket that follow one another in memory, too.
struct Run {
  int32_t handle = 0;
  int64_t dest_offset = 0;
  int64_t bytes = 0;
  int64_t copies = 0;
};

// The run with which a bucket begins.
std::optional<Run> FirstRun(absl::Span<const ScatterCopy> copies) {
  if (copies.empty()) return std::nullopt;
  Run run{.handle = copies[0].handle, .dest_offset = copies[0].dest_offset};
  for (const ScatterCopy& copy : copies) {  // by source_offset
    const bool goes_on = copy.rows == 1 && copy.handle == run.handle && copy.source_offset == run.bytes &&
                         copy.dest_offset == run.dest_offset + run.bytes;
    if (!goes_on) break;
    run.bytes += copy.row_bytes;
    ++run.copies;
  }
  return run;
}

int64_t PayloadEnd(const Plan& plan, const Bucket& bucket) {
  const Piece& last = plan.PiecesOf(bucket).back();
  return last.scale_bytes > 0 ? last.scale_offset + last.scale_bytes : last.data_offset + last.data_bytes;
}

}  // namespace

std::vector<std::byte*> FindDirectBuckets(const Plan& plan, const ScatterTable& table,
                                          absl::Span<std::byte* const> handles, size_t first) {
  const std::vector<Bucket>& buckets = plan.buckets();
  std::vector<std::byte*> direct(buckets.size(), nullptr);
  const auto first_run = [&table](size_t bucket) {
    const int64_t begin = table.bucket_begin[bucket], end = table.bucket_begin[bucket + 1];
    return FirstRun(absl::MakeConstSpan(table.copies).subspan(begin, end - begin));
  };
  for (size_t k = first; k + 1 < buckets.size(); ++k) {
    if (k > 0 && direct[k - 1] != nullptr) continue;
    const std::optional<Run> run = first_run(k), next = first_run(k + 1);
    if (!run || !next || run->bytes != PayloadEnd(plan, buckets[k])) continue;
    // Another place that takes these bytes, too (tied weights that are kept twice), needs the copy.
    if (run->copies != table.bucket_begin[k + 1] - table.bucket_begin[k]) continue;
    const bool goes_on = next->handle == run->handle && next->dest_offset == run->dest_offset + run->bytes &&
                         next->bytes >= buckets[k].wire_bytes - run->bytes;
    std::byte* const place = handles[run->handle] + run->dest_offset;
    if (goes_on && reinterpret_cast<uintptr_t>(place) % kPieceAlign == 0) direct[k] = place;
  }
  return direct;
}

ScatterTable WithoutDirectBuckets(const ScatterTable& table, absl::Span<std::byte* const> direct) {
  ScatterTable rest{.bytes = table.bytes};
  rest.copies.reserve(table.copies.size());
  for (size_t k = 0; k < direct.size(); ++k) {
    rest.bucket_begin.push_back(static_cast<int64_t>(rest.copies.size()));
    if (direct[k] != nullptr) continue;
    rest.copies.insert(rest.copies.end(), table.copies.begin() + table.bucket_begin[k],
                       table.copies.begin() + table.bucket_begin[k + 1]);
  }
  rest.bucket_begin.push_back(static_cast<int64_t>(rest.copies.size()));
  return rest;
}

}  // namespace wsync
