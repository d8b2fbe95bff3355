// Buckets cut into work items of similar size, once per plan: steady state allocates nothing and walks no tensor twice.
//
// An item is a run of segments, a segment some rows of one thing (a piece, a tensor, a copy): small things share an
// item, large ones are cut. So 40,000 one-block tensors cost as many items as the same bytes in 40 tensors.
// Built by one thread, then immutable.
#ifndef WSYNC_SERVER_BACKEND_HOST_WORK_TABLE_H_
#define WSYNC_SERVER_BACKEND_HOST_WORK_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace wsync::host {

// Bytes of one item: long enough (about 0.2 ms) that handing it out costs nothing, short enough that the last items of
// a bucket keep every thread busy.
inline constexpr int64_t kItemBytes = int64_t{512} << 10;

struct Segment {
  int64_t index = 0;  // of the thing
  int64_t row = 0;    // first row, counted from the thing's first
  int64_t rows = 0;
};

class WorkTable {
 public:
  // Building: AddRows for everything in a bucket, then EndBucket, bucket after bucket. Cuts fall on multiples of
  // `row_unit` rows.
  void AddRows(int64_t index, int64_t rows, int64_t row_bytes, int64_t row_unit);
  void EndBucket();

  int64_t Items(int64_t bucket) const { return bucket_begin_[bucket + 1] - bucket_begin_[bucket]; }
  absl::Span<const Segment> Item(int64_t bucket, int64_t item) const;

 private:
  void EndItem();

  std::vector<Segment> segments_;
  std::vector<int64_t> item_begin_ = {0};    // into segments_; one more than there are items
  std::vector<int64_t> bucket_begin_ = {0};  // into item_begin_
  int64_t open_bytes_ = 0;                   // of the item being filled
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_WORK_TABLE_H_
