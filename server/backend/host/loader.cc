#include "server/backend/host/loader.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/digest.h"
#include "server/backend/checks.h"
#include "server/backend/host/task_queue.h"
#include "server/backend/host/work_table.h"
#include "server/core/guarded_range.h"

namespace wsync::host {
namespace {

constexpr int64_t kScaleBytes = sizeof(float);

void CopyRows(const std::byte* from, int64_t from_pitch, std::byte* to, int64_t to_pitch, int64_t rows, int64_t bytes) {
  if (from_pitch == bytes && to_pitch == bytes) {
    std::memcpy(to, from, static_cast<size_t>(rows * bytes));
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_pitch, from + row * from_pitch, static_cast<size_t>(bytes));
  }
}

class HostLoader final : public Loader {
 public:
  HostLoader(std::shared_ptr<const Plan> plan, ScatterTable table, std::vector<std::byte*> handles, WorkerPool* pool);
  ~HostLoader() override;

  CompletionPtr Check(int64_t bucket, const std::byte* wire, CompletionPtr after) override;
  CompletionPtr Apply(int64_t bucket, const std::byte* wire, CompletionPtr after) override;
  absl::Status Retarget(ScatterTable table, std::vector<std::byte*> handles) override;
  CompletionPtr ApplyAll(const std::byte* image, CompletionPtr after) override;
  absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) override;
  bool wrote() const override { return wrote_; }

 private:
  void BuildChecks();
  void BuildCopies();
  void CheckItems(int64_t bucket, const std::byte* wire, TaskQueue::Done done);
  void ApplyItems(int64_t bucket, const std::byte* wire, TaskQueue::Done done);
  void ApplyFrom(int64_t bucket, const std::byte* image, TaskQueue::Done done);
  void DigestSegment(const Segment& segment, const std::byte* wire);
  void CopySegment(const Segment& segment, const std::byte* wire) const;
  absl::Status Compare(int64_t bucket, const std::byte* wire) const;
  void MarkHandles();
  // OK: the memory that a bucket's copies went to, and came from, was there.
  absl::Status CheckLent(int64_t bucket, const std::byte* wire) const;

  const std::shared_ptr<const Plan> plan_;
  ScatterTable table_;
  std::vector<std::byte*> handles_;
  std::vector<CutMark> marks_;  // of handles_
  WorkTable check_work_;        // segments of pieces
  WorkTable copy_work_;         // segments of copies
  std::vector<std::atomic<uint64_t>> digests_;
  std::vector<uint64_t> found_;        // what the last Finish gave
  std::atomic<bool> writing_ = false;  // an apply has begun since the last Finish
  bool applies_ = false;               // one was asked for
  bool wrote_ = false;

  WorkerPool* const pool_;
  const std::shared_ptr<TaskQueue> queue_;
};

HostLoader::HostLoader(std::shared_ptr<const Plan> plan, ScatterTable table, std::vector<std::byte*> handles,
                       WorkerPool* pool)
    : plan_(std::move(plan)),
      table_(std::move(table)),
      handles_(std::move(handles)),
      digests_(plan_->pieces().size()),
      found_(digests_.size()),
      pool_(pool),
      queue_(std::make_shared<TaskQueue>(pool)) {
  BuildChecks();
  BuildCopies();
  MarkHandles();
}

HostLoader::~HostLoader() {
  queue_->Cancel(absl::CancelledError("load: the loader was closed"));
  queue_->Drain(absl::InfiniteFuture()).IgnoreError();  // running tasks use the wire and the destinations
}

void HostLoader::BuildChecks() {
  for (const Bucket& bucket : plan_->buckets()) {
    for (int64_t i = bucket.piece_begin; i < bucket.piece_end; ++i) {
      const Piece& piece = plan_->pieces()[i];
      check_work_.AddRows(i, piece.rows, piece.data_bytes / piece.rows, kBlockSize);
    }
    check_work_.EndBucket();
  }
}

void HostLoader::BuildCopies() {
  copy_work_ = WorkTable();
  if (table_.copies.empty()) table_.bucket_begin.clear();
  for (size_t k = 0; k + 1 < table_.bucket_begin.size(); ++k) {
    for (int64_t i = table_.bucket_begin[k]; i < table_.bucket_begin[k + 1]; ++i) {
      copy_work_.AddRows(i, table_.copies[i].rows, table_.copies[i].row_bytes, 1);
    }
    copy_work_.EndBucket();
  }
}

absl::Status HostLoader::Retarget(ScatterTable table, std::vector<std::byte*> handles) {
  const absl::Status status = CheckScatterTable(*plan_, table, handles.size());
  table_ = status.ok() ? std::move(table) : ScatterTable{};
  handles_ = status.ok() ? std::move(handles) : std::vector<std::byte*>{};
  BuildCopies();
  MarkHandles();
  return status;
}

void HostLoader::MarkHandles() {
  marks_.clear();
  for (const std::byte* handle : handles_) marks_.push_back(CutMarkAt(handle));
}

CompletionPtr HostLoader::Check(int64_t bucket, const std::byte* wire, CompletionPtr after) {
  if (absl::Status status = CheckBucket(*plan_, bucket, "load"); !status.ok()) return HostCompletion::Finished(status);
  return queue_->Add(after, [this, bucket, wire](TaskQueue::Done done) { CheckItems(bucket, wire, std::move(done)); });
}

void HostLoader::CheckItems(int64_t bucket, const std::byte* wire, TaskQueue::Done done) {
  const Bucket& b = plan_->buckets()[bucket];
  for (int64_t i = b.piece_begin; i < b.piece_end; ++i) digests_[i].store(0, std::memory_order_relaxed);
  pool_->ParallelFor(
      check_work_.Items(bucket),
      [this, bucket, wire](int64_t item) {
        for (const Segment& segment : check_work_.Item(bucket, item)) DigestSegment(segment, wire);
      },
      [this, bucket, wire, done = std::move(done)] { done(Compare(bucket, wire)); });
}

void HostLoader::DigestSegment(const Segment& segment, const std::byte* wire) {
  const Piece& piece = plan_->pieces()[segment.index];
  const int64_t row_bytes = piece.data_bytes / piece.rows;
  uint64_t digest = DigestRows(wire + piece.data_offset + segment.row * row_bytes, piece.row_begin + segment.row,
                               segment.rows, row_bytes, row_bytes);
  if (segment.row == 0 && piece.scale_bytes > 0) {  // scales are few: whoever has the first rows takes them all
    digest += DigestScales(wire + piece.scale_offset, plan_->FirstScaleOf(piece), piece.scale_bytes / kScaleBytes);
  }
  digests_[segment.index].fetch_add(digest, std::memory_order_relaxed);
}

absl::Status HostLoader::Compare(int64_t bucket, const std::byte* wire) const {
  if (CutMarkAt(wire).cut()) return MemoryCutError("memory of the engine that a bucket was received into");
  const Bucket& b = plan_->buckets()[bucket];
  const std::byte* table = wire + b.digest_offset;
  for (int64_t i = b.piece_begin; i < b.piece_end; ++i, table += sizeof(uint64_t)) {
    uint64_t sent = 0;
    std::memcpy(&sent, table, sizeof(sent));
    if (sent == digests_[i].load(std::memory_order_relaxed)) continue;
    return MismatchError(*plan_, bucket, i);
  }
  return absl::OkStatus();
}

CompletionPtr HostLoader::Apply(int64_t bucket, const std::byte* wire, CompletionPtr after) {
  if (absl::Status status = CheckBucket(*plan_, bucket, "load"); !status.ok()) return HostCompletion::Finished(status);
  applies_ = true;
  return queue_->Add(after, [this, bucket, wire](TaskQueue::Done done) { ApplyItems(bucket, wire, std::move(done)); });
}

void HostLoader::ApplyItems(int64_t bucket, const std::byte* wire, TaskQueue::Done done) {
  writing_.store(true, std::memory_order_relaxed);
  pool_->ParallelFor(
      table_.bucket_begin.empty() ? 0 : copy_work_.Items(bucket),
      [this, bucket, wire](int64_t item) {
        for (const Segment& segment : copy_work_.Item(bucket, item)) CopySegment(segment, wire);
      },
      [this, bucket, wire, done = std::move(done)] { done(CheckLent(bucket, wire)); });
}

absl::Status HostLoader::CheckLent(int64_t bucket, const std::byte* wire) const {
  if (table_.bucket_begin.empty()) return absl::OkStatus();
  if (CutMarkAt(wire).cut()) return MemoryCutError("memory of the engine");
  for (int64_t i = table_.bucket_begin[bucket]; i < table_.bucket_begin[bucket + 1]; ++i) {
    if (marks_[table_.copies[i].handle].cut()) {
      return MemoryCutError(absl::StrCat("memory of the engine (handle ", table_.copies[i].handle, ")"));
    }
  }
  return absl::OkStatus();
}

CompletionPtr HostLoader::ApplyAll(const std::byte* image, CompletionPtr after) {
  applies_ = true;
  return queue_->Add(after, [this, image](TaskQueue::Done done) { ApplyFrom(0, image, std::move(done)); });
}

void HostLoader::ApplyFrom(int64_t bucket, const std::byte* image, TaskQueue::Done done) {
  if (bucket == static_cast<int64_t>(plan_->buckets().size())) return done(absl::OkStatus());
  ApplyItems(bucket, image + plan_->buckets()[bucket].image_offset,
             [this, bucket, image, done = std::move(done)](const absl::Status& status) {
               status.ok() ? ApplyFrom(bucket + 1, image, done) : done(status);
             });
}

void HostLoader::CopySegment(const Segment& segment, const std::byte* wire) const {
  const ScatterCopy& copy = table_.copies[segment.index];
  if (marks_[copy.handle].cut()) return;  // it would only fill memory of our own
  CopyRows(wire + copy.source_offset + segment.row * copy.source_pitch, copy.source_pitch,
           handles_[copy.handle] + copy.dest_offset + segment.row * copy.dest_pitch, copy.dest_pitch, segment.rows,
           copy.row_bytes);
}

absl::StatusOr<absl::Span<const uint64_t>> HostLoader::Finish(absl::Time deadline) {
  absl::Status status = queue_->Drain(deadline);
  if (absl::IsDeadlineExceeded(status)) {
    wrote_ = applies_;
    return status;
  }
  wrote_ = writing_.exchange(false, std::memory_order_relaxed);
  applies_ = false;
  for (size_t i = 0; i < found_.size(); ++i) found_[i] = digests_[i].exchange(0, std::memory_order_relaxed);
  if (!status.ok()) return status;
  return found_;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Loader>> NewHostLoader(std::shared_ptr<const Plan> plan, ScatterTable table,
                                                      std::vector<std::byte*> handles, WorkerPool* pool) {
  if (absl::Status status = CheckScatterTable(*plan, table, handles.size()); !status.ok()) return status;
  return std::make_unique<HostLoader>(std::move(plan), std::move(table), std::move(handles), pool);
}

}  // namespace wsync::host
