#include "server/backend/host/quantizer.h"

#include <atomic>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/quantize.h"
#include "server/backend/checks.h"
#include "server/backend/host/task_queue.h"
#include "server/backend/host/work_table.h"
#include "server/backend/nonfinite.h"
#include "server/core/guarded_range.h"

namespace wsync::host {
namespace {

// What encoding needs of a tensor, without walking the catalog.
struct Source {
  const std::byte* data = nullptr;
  int64_t cols = 0;
  Dtype dtype = Dtype::kBF16;
  Recipe recipe;
  CutMark mark;  // of the lent memory it lies in

  int64_t row_bytes() const { return cols * DtypeBytes(dtype); }
  int64_t wire_row_bytes() const { return cols * (recipe.fp8 ? 1 : DtypeBytes(dtype)); }
  bool needs_amax() const { return recipe.fp8 && recipe.granularity == Granularity::kTensor; }
};

class HostQuantizer final : public Quantizer {
 public:
  HostQuantizer(std::shared_ptr<const Plan> plan, const std::vector<const std::byte*>& tensors, WorkerPool* pool);
  ~HostQuantizer() override;

  CompletionPtr Encode(int64_t bucket, std::byte* wire, CompletionPtr after) override;
  absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) override;
  void Cancel(const absl::Status& why) override { queue_->Cancel(why); }

 private:
  // Non-negative floats order like their bits.
  struct Amax {
    std::atomic<uint32_t> bits = 0;
    bool known = false;  // in this version; read and written between parallel phases only
  };

  void BuildTables();
  void FindAmaxes(int64_t bucket, std::byte* wire, TaskQueue::Done done);
  void EncodeItems(int64_t bucket, std::byte* wire, TaskQueue::Done done);
  void AmaxSegment(const Segment& segment);
  void EncodeSegment(const Segment& segment, std::byte* wire);
  void EndAmaxes(int64_t bucket);
  void EndBucket(int64_t bucket, std::byte* wire);
  void Report(int64_t tensor, int64_t element);
  absl::Status TakeError();
  // OK: what was read of the bucket's tensors was there.
  absl::Status CheckLent(int64_t bucket) const;

  const std::shared_ptr<const Plan> plan_;
  std::vector<Source> sources_;  // per catalog tensor
  WorkTable encode_work_;        // segments of pieces
  WorkTable amax_work_;          // segments of whole tensors, for those with one scale
  std::vector<std::atomic<uint64_t>> digests_;
  std::vector<uint64_t> found_;  // what the last Finish gave
  std::vector<Amax> amaxes_;     // per catalog tensor; empty when no tensor has one scale

  // The first non-finite value of the running task, in catalog order, so that every run names the same one.
  Mutex mu_;
  int64_t bad_tensor_ ABSL_GUARDED_BY(mu_) = -1;
  int64_t bad_element_ ABSL_GUARDED_BY(mu_) = kNoIndex;

  WorkerPool* const pool_;
  const std::shared_ptr<TaskQueue> queue_;
};

HostQuantizer::HostQuantizer(std::shared_ptr<const Plan> plan, const std::vector<const std::byte*>& tensors,
                             WorkerPool* pool)
    : plan_(std::move(plan)),
      digests_(plan_->pieces().size()),
      found_(digests_.size()),
      pool_(pool),
      queue_(std::make_shared<TaskQueue>(pool)) {
  bool any_amax = false;
  sources_.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& tensor = plan_->catalog().tensors()[i];
    sources_.push_back(
        {tensors[i], ViewOf(tensor).cols, tensor.dtype, plan_->recipes()[i].recipe, CutMarkAt(tensors[i])});
    any_amax |= sources_.back().needs_amax();
  }
  if (any_amax) amaxes_ = std::vector<Amax>(tensors.size());
  BuildTables();
}

HostQuantizer::~HostQuantizer() {
  Cancel(absl::CancelledError("encode: the quantizer was closed"));
  queue_->Drain(absl::InfiniteFuture()).IgnoreError();  // running tasks read the source and write the wire
}

void HostQuantizer::BuildTables() {
  for (const Bucket& bucket : plan_->buckets()) {
    int64_t last_tensor = -1;
    for (int64_t i = bucket.piece_begin; i < bucket.piece_end; ++i) {
      const Piece& piece = plan_->pieces()[i];
      const Source& source = sources_[piece.tensor];
      encode_work_.AddRows(i, piece.rows, source.row_bytes(), kBlockSize);
      if (!source.needs_amax() || piece.tensor == last_tensor) continue;
      last_tensor = piece.tensor;
      const int64_t rows = ViewOf(plan_->catalog().tensors()[piece.tensor]).rows;
      amax_work_.AddRows(piece.tensor, rows, source.row_bytes(), 1);
    }
    encode_work_.EndBucket();
    amax_work_.EndBucket();
  }
}

CompletionPtr HostQuantizer::Encode(int64_t bucket, std::byte* wire, CompletionPtr after) {
  if (absl::Status status = CheckBucket(*plan_, bucket, "encode"); !status.ok()) {
    return HostCompletion::Finished(status);
  }
  return queue_->Add(after, [this, bucket, wire](TaskQueue::Done done) { FindAmaxes(bucket, wire, std::move(done)); });
}

void HostQuantizer::FindAmaxes(int64_t bucket, std::byte* wire, TaskQueue::Done done) {
  const int64_t items = amax_work_.Items(bucket);
  if (items == 0) return EncodeItems(bucket, wire, std::move(done));
  pool_->ParallelFor(
      items,
      [this, bucket](int64_t item) {
        for (const Segment& segment : amax_work_.Item(bucket, item)) AmaxSegment(segment);
      },
      [this, bucket, wire, done = std::move(done)] {
        EndAmaxes(bucket);
        absl::Status status = CheckLent(bucket);
        status.Update(TakeError());
        if (!status.ok()) return done(status);
        EncodeItems(bucket, wire, done);
      });
}

void HostQuantizer::AmaxSegment(const Segment& segment) {
  Amax& amax = amaxes_[segment.index];
  if (amax.known) return;
  const Source& source = sources_[segment.index];
  const AbsMaxResult result =
      AbsMax(source.data + segment.row * source.row_bytes(), source.dtype, segment.row, segment.rows, source.cols);
  if (result.first_nonfinite != kNoIndex) return Report(segment.index, result.first_nonfinite);
  const uint32_t bits = std::bit_cast<uint32_t>(result.amax);
  uint32_t seen = amax.bits.load(std::memory_order_relaxed);
  while (bits > seen && !amax.bits.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
  }
}

void HostQuantizer::EndAmaxes(int64_t bucket) {
  const Bucket& b = plan_->buckets()[bucket];
  for (const Piece& piece : plan_->PiecesOf(b)) {
    if (sources_[piece.tensor].needs_amax()) amaxes_[piece.tensor].known = true;
  }
}

void HostQuantizer::EncodeItems(int64_t bucket, std::byte* wire, TaskQueue::Done done) {
  const Bucket& b = plan_->buckets()[bucket];
  for (int64_t i = b.piece_begin; i < b.piece_end; ++i) digests_[i].store(0, std::memory_order_relaxed);
  pool_->ParallelFor(
      encode_work_.Items(bucket),
      [this, bucket, wire](int64_t item) {
        for (const Segment& segment : encode_work_.Item(bucket, item)) EncodeSegment(segment, wire);
      },
      [this, bucket, wire, done = std::move(done)] {
        EndBucket(bucket, wire);
        absl::Status status = CheckLent(bucket);  // first: what was cut is no value of the client's
        status.Update(TakeError());
        done(status);
      });
}

void HostQuantizer::EncodeSegment(const Segment& segment, std::byte* wire) {
  const Piece& piece = plan_->pieces()[segment.index];
  const Source& source = sources_[piece.tensor];
  const int64_t row = piece.row_begin + segment.row;
  EncodeTask task{.source = source.data + row * source.row_bytes(),
                  .dtype = source.dtype,
                  .row_begin = row,
                  .rows = segment.rows,
                  .cols = source.cols,
                  .recipe = source.recipe};
  task.data = wire + piece.data_offset + segment.row * source.wire_row_bytes();
  if (source.needs_amax()) {
    task.tensor_amax = std::bit_cast<float>(amaxes_[piece.tensor].bits.load(std::memory_order_relaxed));
    if (row == 0) task.scales = wire + piece.scale_offset;
  } else if (source.recipe.fp8) {
    const Granularity g = source.recipe.granularity;
    const int64_t scales_before = ScaleRows(g, segment.row) * ScaleCols(g, source.cols);
    task.scales = wire + piece.scale_offset + scales_before * static_cast<int64_t>(sizeof(float));
  }
  const EncodeResult result = wsync::Encode(task);
  if (result.first_nonfinite != kNoIndex) return Report(piece.tensor, result.first_nonfinite);
  digests_[segment.index].fetch_add(result.digest, std::memory_order_relaxed);
}

void HostQuantizer::EndBucket(int64_t bucket, std::byte* wire) {
  const Bucket& b = plan_->buckets()[bucket];
  std::byte* table = wire + b.digest_offset;
  for (int64_t i = b.piece_begin; i < b.piece_end; ++i, table += sizeof(uint64_t)) {
    const uint64_t digest = digests_[i].load(std::memory_order_relaxed);
    std::memcpy(table, &digest, sizeof(digest));
  }
}

void HostQuantizer::Report(int64_t tensor, int64_t element) {
  MutexLock lock(&mu_);
  if (bad_tensor_ >= 0 && std::pair(bad_tensor_, bad_element_) < std::pair(tensor, element)) return;
  bad_tensor_ = tensor;
  bad_element_ = element;
}

absl::Status HostQuantizer::TakeError() {
  int64_t tensor = 0, element = 0;
  {
    MutexLock lock(&mu_);
    tensor = std::exchange(bad_tensor_, -1);
    element = std::exchange(bad_element_, kNoIndex);
  }
  if (tensor < 0) return absl::OkStatus();
  const Source& source = sources_[tensor];
  return NonFiniteError(plan_->catalog().tensors()[tensor], source.recipe, element,
                        source.data + element * DtypeBytes(source.dtype));
}

absl::Status HostQuantizer::CheckLent(int64_t bucket) const {
  for (const Piece& piece : plan_->PiecesOf(plan_->buckets()[bucket])) {
    if (!sources_[piece.tensor].mark.cut()) continue;
    return MemoryCutError(absl::StrCat("the memory of tensor '", plan_->catalog().tensors()[piece.tensor].name, "'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const uint64_t>> HostQuantizer::Finish(absl::Time deadline) {
  absl::Status status = queue_->Drain(deadline);
  if (absl::IsDeadlineExceeded(status)) return status;
  for (size_t i = 0; i < found_.size(); ++i) found_[i] = digests_[i].exchange(0, std::memory_order_relaxed);
  for (Amax& amax : amaxes_) {
    amax.bits.store(0, std::memory_order_relaxed);
    amax.known = false;
  }
  if (!status.ok()) return status;
  return found_;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Quantizer>> NewHostQuantizer(std::shared_ptr<const Plan> plan,
                                                            std::vector<const std::byte*> tensors, WorkerPool* pool) {
  if (absl::Status status = CheckSources(*plan, tensors); !status.ok()) return status;
  return std::make_unique<HostQuantizer>(std::move(plan), tensors, pool);
}

}  // namespace wsync::host
