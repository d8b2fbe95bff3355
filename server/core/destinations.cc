#include "server/core/destinations.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace wsync {
namespace {

constexpr int64_t kProblemsShown = 20;  // enough to see the pattern; the full list of a wrong model has thousands

class ProblemList {
 public:
  void Add(std::string text) {
    if (++count_ <= kProblemsShown) texts_.push_back(std::move(text));
  }
  bool empty() const { return count_ == 0; }
  absl::Status ToStatus() const {
    std::string message =
        absl::StrCat(count_, count_ == 1 ? " problem" : " problems",
                     " between the engine's destinations and the plan:\n  ", absl::StrJoin(texts_, "\n  "));
    if (count_ > kProblemsShown) absl::StrAppend(&message, "\n  and ", count_ - kProblemsShown, " more");
    return absl::InvalidArgumentError(message);
  }

 private:
  std::vector<std::string> texts_;
  int64_t count_ = 0;
};

std::string Quoted(std::string_view name) {
  return absl::StrCat("'", absl::CHexEscape(std::string(name.substr(0, 200))), "'");
}

std::string DtypeText(Dtype dtype) { return std::string(DtypeName(dtype)); }

std::string ShapeText(absl::Span<const int64_t> shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

std::string RangeText(int64_t begin, int64_t end) { return absl::StrCat("[", begin, ", ", end, ")"); }

MatrixView ViewOfOutput(const Output& output) { return ViewOf(Tensor{{}, output.dtype, output.shape}); }

bool HasBytes(const Output& output) {
  return std::find(output.shape.begin(), output.shape.end(), 0) == output.shape.end();
}

int64_t RowBytes(const Destination& d) { return (d.col_end - d.col_begin) * DtypeBytes(d.dtype); }
int64_t RowCount(const Destination& d) { return d.row_end - d.row_begin; }

// Why the slice itself does not fit `output`; empty if it does.
std::string SliceProblem(const Destination& d, const Output& output) {
  if (d.dtype != output.dtype) {
    return absl::StrCat("the plan sends ", DtypeText(output.dtype), ", the engine holds ", DtypeText(d.dtype));
  }
  if (d.shape != output.shape) {
    return absl::StrCat("the plan sends shape ", ShapeText(output.shape), ", the engine expects ", ShapeText(d.shape));
  }
  const MatrixView view = ViewOfOutput(output);
  const bool rows_fit = 0 <= d.row_begin && d.row_begin <= d.row_end && d.row_end <= view.rows;
  const bool cols_fit = 0 <= d.col_begin && d.col_begin <= d.col_end && d.col_end <= view.cols;
  const std::string range =
      absl::StrCat("rows ", RangeText(d.row_begin, d.row_end), " x columns ", RangeText(d.col_begin, d.col_end));
  if (!rows_fit || !cols_fit) {
    return absl::StrCat(range, " lie outside the tensor's ", view.rows, " x ", view.cols);
  }
  if (HasBytes(output) && (d.row_begin == d.row_end || d.col_begin == d.col_end)) {
    return absl::StrCat(range, " take nothing; leave the destination out if that is meant");
  }
  return {};
}

// Why the memory does not hold the slice. REQUIRES: the slice fits its output.
std::string MemoryProblem(const Destination& d, absl::Span<const int64_t> handle_bytes) {
  if (d.handle < 0 || d.handle >= static_cast<int64_t>(handle_bytes.size())) {
    return absl::StrCat("handle ", d.handle, " is unknown; ", handle_bytes.size(), " were given");
  }
  const int64_t limit = handle_bytes[d.handle], row_bytes = RowBytes(d), rows = RowCount(d);
  if (rows == 0 || row_bytes == 0) return {};
  if (d.row_pitch_bytes < row_bytes) {
    return absl::StrCat("row pitch ", d.row_pitch_bytes, " is smaller than a row of ", row_bytes, " bytes");
  }
  // Divisions rather than products: offset and pitch are the engine's word and may be anything.
  const bool first_row_fits = d.offset_bytes >= 0 && row_bytes <= limit && d.offset_bytes <= limit - row_bytes;
  if (!first_row_fits || rows - 1 > (limit - row_bytes - d.offset_bytes) / d.row_pitch_bytes) {
    return absl::StrCat(rows, " rows of ", row_bytes, " bytes, ", d.row_pitch_bytes, " apart, from offset ",
                        d.offset_bytes, " do not fit the ", limit, " bytes of handle ", d.handle);
  }
  return {};
}

// The memory of one destination: rows of `row_bytes`, `pitch` apart. Contiguous memory is one row.
struct Extent {
  int32_t handle;
  int64_t begin, end;
  int64_t rows, row_bytes, pitch;
  size_t destination;
};

Extent ExtentOf(const Destination& d, size_t index) {
  Extent e{d.handle, d.offset_bytes, 0, RowCount(d), RowBytes(d), d.row_pitch_bytes, index};
  e.end = e.begin + (e.rows - 1) * e.pitch + e.row_bytes;
  if (e.rows == 1 || e.row_bytes == e.pitch) {
    e.rows = 1;
    e.row_bytes = e.end - e.begin;
  }
  return e;
}

int64_t FloorDiv(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// REQUIRES: same handle, a.begin <= b.begin.
bool Overlap(const Extent& a, const Extent& b) {
  if (b.begin >= a.end) return false;
  if (a.rows == 1 && b.rows == 1) return true;
  if (a.rows > 1 && b.rows > 1 && a.pitch != b.pitch) return true;  // conservative
  // Row i of a meets row j of b where  -b.row_bytes < shift - (i - j) * pitch < a.row_bytes.  Is there such an i - j?
  const int64_t pitch = a.rows > 1 ? a.pitch : b.pitch;
  const int64_t shift = b.begin - a.begin;
  const int64_t least = std::max(FloorDiv(shift - a.row_bytes, pitch) + 1, -(b.rows - 1));
  const int64_t most = std::min(-FloorDiv(-(shift + b.row_bytes), pitch) - 1, a.rows - 1);
  return least <= most;
}

// One line per destination that overlaps an earlier one. Only extents that meet are compared, so the cost is linear
// but for destinations that interleave with each other, few of which share the same rows.
void FindOverlaps(absl::Span<const Destination> destinations, std::vector<Extent> extents, ProblemList* problems) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::tie(a.handle, a.begin, a.destination) < std::tie(b.handle, b.begin, b.destination);
  });
  std::vector<Extent> open;  // extents that may reach the one at hand
  for (const Extent& e : extents) {
    std::erase_if(open, [&](const Extent& o) { return o.handle != e.handle || o.end <= e.begin; });
    const auto hit = std::find_if(open.begin(), open.end(), [&](const Extent& o) { return Overlap(o, e); });
    if (hit != open.end()) {
      problems->Add(absl::StrCat(Quoted(destinations[e.destination].output), ": its memory at offset ", e.begin,
                                 " of handle ", e.handle, " overlaps that of ",
                                 Quoted(destinations[hit->destination].output), " at offset ", hit->begin));
    }
    open.push_back(e);
  }
}

class TableBuilder {
 public:
  explicit TableBuilder(const Plan& plan) : plan_(plan) {}

  void Add(const Destination& d, const Output& output) {
    const auto& pieces = plan_.pieces();  // sorted by (tensor, row_begin)
    auto piece =
        std::partition_point(pieces.begin(), pieces.end(), [&](const Piece& p) { return p.tensor < output.tensor; });
    // Skip to the piece that holds the first row wanted: a stacked tensor has many pieces and many destinations.
    piece = std::partition_point(piece, pieces.end(), [&](const Piece& p) {
      return p.tensor == output.tensor && PartOf(p, output).row_end <= d.row_begin;
    });
    for (; piece != pieces.end() && piece->tensor == output.tensor; ++piece) {
      const Part part = PartOf(*piece, output);
      if (part.row_begin >= d.row_end) break;
      AddCopy(d, output, part, piece - pieces.begin());
    }
  }

  ScatterTable Build() && {
    std::stable_sort(found_.begin(), found_.end(), [](const Found& a, const Found& b) {
      return std::tie(a.bucket, a.copy.source_offset) < std::tie(b.bucket, b.copy.source_offset);
    });
    ScatterTable table;
    table.copies.reserve(found_.size());
    table.bucket_begin.assign(plan_.buckets().size() + 1, 0);
    for (const Found& found : found_) {
      table.copies.push_back(found.copy);
      table.bytes += found.copy.rows * found.copy.row_bytes;
      ++table.bucket_begin[found.bucket + 1];
    }
    for (size_t k = 1; k < table.bucket_begin.size(); ++k) table.bucket_begin[k] += table.bucket_begin[k - 1];
    return table;
  }

 private:
  struct Found {
    int64_t bucket;
    ScatterCopy copy;
  };
  // The rows of an output that one piece carries, and where.
  struct Part {
    int64_t row_begin, row_end;
    int64_t offset;
  };

  Part PartOf(const Piece& piece, const Output& output) const {
    if (!output.is_scale) return {piece.row_begin, piece.row_begin + piece.rows, piece.data_offset};
    const Granularity granularity = plan_.RecipeOf(piece).granularity;
    // The one scale of a tensor lies in its first piece; the others carry the empty range behind it.
    if (granularity == Granularity::kTensor) return {piece.row_begin == 0 ? 0 : 1, 1, piece.scale_offset};
    const int64_t begin = ScaleRows(granularity, piece.row_begin);
    return {begin, begin + ScaleRows(granularity, piece.rows), piece.scale_offset};
  }

  void AddCopy(const Destination& d, const Output& output, const Part& part, int64_t piece) {
    const int64_t begin = std::max(d.row_begin, part.row_begin), end = std::min(d.row_end, part.row_end);
    const int64_t row_bytes = RowBytes(d);
    if (begin >= end || row_bytes == 0) return;
    const int64_t element = DtypeBytes(output.dtype);
    ScatterCopy copy{.source_pitch = ViewOfOutput(output).cols * element, .handle = d.handle};
    copy.source_offset = part.offset + (begin - part.row_begin) * copy.source_pitch + d.col_begin * element;
    copy.dest_offset = d.offset_bytes + (begin - d.row_begin) * d.row_pitch_bytes;
    copy.dest_pitch = d.row_pitch_bytes;
    copy.rows = end - begin;
    copy.row_bytes = row_bytes;
    if (copy.rows == 1 || (copy.source_pitch == row_bytes && copy.dest_pitch == row_bytes)) {
      copy.row_bytes *= copy.rows;
      copy.rows = 1;
      copy.source_pitch = copy.dest_pitch = copy.row_bytes;
    }
    found_.push_back({BucketOf(piece), copy});
  }

  int64_t BucketOf(int64_t piece) const {
    const auto& buckets = plan_.buckets();
    const auto it = std::partition_point(buckets.begin(), buckets.end(),
                                         [&](const Bucket& bucket) { return bucket.piece_end <= piece; });
    return it - buckets.begin();
  }

  const Plan& plan_;
  std::vector<Found> found_;
};

// What nobody takes would keep its old bytes in the engine, unnoticed.
void FindUntaken(const Plan& plan, const std::vector<bool>& taken, const OutputScope* scope, ProblemList* problems) {
  for (size_t i = 0; i < taken.size(); ++i) {
    const Output& output = plan.outputs()[i];
    if (taken[i] || !HasBytes(output) || (scope != nullptr && !scope->in[i])) continue;
    problems->Add(absl::StrCat(Quoted(output.name), ": no destination takes it (", DtypeText(output.dtype), " ",
                               ShapeText(output.shape), ")"));
  }
}

}  // namespace

absl::StatusOr<ScatterTable> BuildScatterTable(const Plan& plan, absl::Span<const Destination> destinations,
                                               absl::Span<const int64_t> handle_bytes, bool allow_partial,
                                               const OutputScope* scope) {
  ProblemList problems;
  TableBuilder table(plan);
  std::vector<bool> taken(plan.outputs().size(), false);
  std::vector<Extent> extents;
  extents.reserve(destinations.size());
  for (size_t i = 0; i < destinations.size(); ++i) {
    const Destination& d = destinations[i];
    const int64_t index = plan.FindOutput(d.output);
    if (index < 0) {
      problems.Add(absl::StrCat(Quoted(d.output), ": the plan sends no tensor of that name"));
      continue;
    }
    if (scope != nullptr && !scope->in[index]) {
      problems.Add(absl::StrCat(Quoted(d.output), ": ", scope->not_in));
      continue;
    }
    const Output& output = plan.outputs()[index];
    taken[index] = true;
    std::string problem = SliceProblem(d, output);
    if (problem.empty()) problem = MemoryProblem(d, handle_bytes);
    if (!problem.empty()) {
      problems.Add(absl::StrCat(Quoted(d.output), ": ", problem));
    } else if (HasBytes(output)) {
      extents.push_back(ExtentOf(d, i));
      table.Add(d, output);
    }
  }
  FindOverlaps(destinations, std::move(extents), &problems);
  if (!allow_partial) FindUntaken(plan, taken, scope, &problems);
  if (!problems.empty()) return problems.ToStatus();
  return std::move(table).Build();
}

absl::Status CheckDisjoint(absl::Span<const Destination> destinations) {
  ProblemList problems;
  std::vector<Extent> extents;
  for (size_t i = 0; i < destinations.size(); ++i) {
    if (RowCount(destinations[i]) > 0 && RowBytes(destinations[i]) > 0) extents.push_back(ExtentOf(destinations[i], i));
  }
  FindOverlaps(destinations, std::move(extents), &problems);
  return problems.empty() ? absl::OkStatus() : problems.ToStatus();
}

}  // namespace wsync
