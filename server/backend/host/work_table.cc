#include "server/backend/host/work_table.h"

#include <algorithm>

namespace wsync::host {

void WorkTable::AddRows(int64_t index, int64_t rows, int64_t row_bytes, int64_t row_unit) {
  const int64_t unit_bytes = std::max<int64_t>(1, row_unit * row_bytes);
  for (int64_t row = 0; row < rows;) {
    const int64_t units = std::max<int64_t>(1, (kItemBytes - open_bytes_) / unit_bytes);
    const int64_t count = std::min(rows - row, units * row_unit);
    segments_.push_back({.index = index, .row = row, .rows = count});
    open_bytes_ += count * row_bytes;
    row += count;
    if (open_bytes_ + unit_bytes > kItemBytes) EndItem();
  }
}

void WorkTable::EndItem() {
  if (item_begin_.back() != static_cast<int64_t>(segments_.size())) {
    item_begin_.push_back(static_cast<int64_t>(segments_.size()));
  }
  open_bytes_ = 0;
}

void WorkTable::EndBucket() {
  EndItem();
  bucket_begin_.push_back(static_cast<int64_t>(item_begin_.size()) - 1);
}

absl::Span<const Segment> WorkTable::Item(int64_t bucket, int64_t item) const {
  const int64_t begin = item_begin_[bucket_begin_[bucket] + item];
  const int64_t end = item_begin_[bucket_begin_[bucket] + item + 1];
  return absl::MakeConstSpan(segments_).subspan(begin, end - begin);
}

}  // namespace wsync::host
