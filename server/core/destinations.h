// Where an engine wants bytes: a slice of an output tensor, and the memory it ends up in. Checked against the plan,
// then turned into copies per piece. Pure; addresses are opaque numbers here.
#ifndef WSYNC_SERVER_CORE_DESTINATIONS_H_
#define WSYNC_SERVER_CORE_DESTINATIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/core/plan.h"

namespace wsync {

// One slice of an output tensor (its MatrixView) -> strided memory.
struct Destination {
  std::string output;            // output tensor name: "X.weight", "X.weight_scale_inv", ...
  Dtype dtype = Dtype::kF8E4M3;  // what the engine holds; must equal the plan's
  std::vector<int64_t> shape;    // the output's full shape as the engine expects it; must equal the plan's
  int64_t row_begin = 0, row_end = 0;
  int64_t col_begin = 0, col_end = 0;
  int32_t handle = 0;           // which memory handle of the attachment
  int64_t offset_bytes = 0;     // of element [row_begin, col_begin] within the handle's memory
  int64_t row_pitch_bytes = 0;  // distance between rows there
};

// One strided copy out of one piece. Source rows are `source_pitch` apart within the bucket. What is contiguous on both
// sides comes as a single row.
struct ScatterCopy {
  int64_t source_offset = 0;  // bytes from the start of the bucket
  int64_t source_pitch = 0;
  int32_t handle = 0;
  int64_t dest_offset = 0;
  int64_t dest_pitch = 0;
  int64_t rows = 0;
  int64_t row_bytes = 0;
};

// Copies of every bucket: entries [bucket_begin[k], bucket_begin[k + 1]) belong to bucket k, by source_offset. All
// destinations are disjoint, so the copies may run in any order and at once.
struct ScatterTable {
  std::vector<ScatterCopy> copies;
  std::vector<int64_t> bucket_begin;
  int64_t bytes = 0;  // written per version
};

// The outputs that a set of destinations is for, where that is not all of the plan's.
struct OutputScope {
  std::vector<bool> in;  // by output
  std::string not_in;    // what is said of a destination for another one
};

// INVALID_ARGUMENT listing what does not fit, one line each (first 20 shown, count given): unknown output, dtype or
// shape other than the plan's (says both; "the plan sends F8_E4M3, the engine holds BF16"), range outside the tensor or
// of nothing, memory outside its handle (`handle_bytes`), row pitch smaller than a row, two destinations that overlap
// in memory, and outputs nobody takes unless `allow_partial` (those without bytes may always be left out). With a
// `scope`, also destinations outside of it; only its outputs have to be taken.
//
// Overlap is exact for rows of equal pitch, so destinations may interleave: column ranges of one fused matrix, say.
// Two destinations whose rows differ in pitch are refused where their memory extents meet.
absl::StatusOr<ScatterTable> BuildScatterTable(const Plan& plan, absl::Span<const Destination> destinations,
                                               absl::Span<const int64_t> handle_bytes, bool allow_partial,
                                               const OutputScope* scope = nullptr);

// INVALID_ARGUMENT listing destinations that overlap in memory, as above. REQUIRES: each of them passed
// BuildScatterTable, and `handle` is the same number for the same memory.
absl::Status CheckDisjoint(absl::Span<const Destination> destinations);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_DESTINATIONS_H_
