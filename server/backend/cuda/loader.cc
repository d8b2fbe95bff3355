#include "server/backend/cuda/loader.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/load_cuda.h"
#include "server/backend/checks.h"
#include "server/backend/cuda/completion.h"
#include "server/backend/cuda/work_log.h"

namespace wsync::cuda {
namespace {

constexpr int64_t kScaleBytes = sizeof(float);
constexpr char kPurpose[] = "the loader's tables";

CheckTable BuildChecks(const Plan& plan) {
  std::vector<CheckPiece> pieces;
  pieces.reserve(plan.pieces().size());
  for (const Piece& piece : plan.pieces()) {
    CheckPiece& out = pieces.emplace_back();
    out.data_offset = piece.data_offset;
    out.row_begin = piece.row_begin;
    out.rows = piece.rows;
    out.row_bytes = piece.data_bytes / piece.rows;
    if (piece.scale_bytes == 0) continue;
    out.scale_offset = piece.scale_offset;
    out.scale_count = piece.scale_bytes / kScaleBytes;
    out.first_scale = plan.FirstScaleOf(piece);
  }
  std::vector<CheckBucket> buckets;
  for (const Bucket& bucket : plan.buckets()) {
    buckets.push_back({bucket.piece_begin, bucket.piece_end, bucket.digest_offset});
  }
  return BuildCheckTable(pieces, buckets);
}

CopyTable BuildCopies(const Plan& plan, const ScatterTable& table, const std::vector<std::byte*>& handles) {
  std::vector<int64_t> image_offsets;
  for (const Bucket& bucket : plan.buckets()) image_offsets.push_back(bucket.image_offset);
  std::vector<Copy> copies;
  copies.reserve(table.copies.size());
  for (const ScatterCopy& copy : table.copies) {
    copies.push_back({.source_offset = copy.source_offset,
                      .source_pitch = copy.source_pitch,
                      .dest = handles[copy.handle] + copy.dest_offset,
                      .dest_pitch = copy.dest_pitch,
                      .rows = copy.rows,
                      .row_bytes = copy.row_bytes});
  }
  std::vector<int64_t> bucket_begin = table.bucket_begin;
  if (copies.empty()) bucket_begin.assign(image_offsets.size() + 1, 0);
  return BuildCopyTable(copies, bucket_begin, image_offsets);
}

// What checks leave on the host: the Mismatches of every bucket, then the digests of all pieces. Shared with the
// completions, which may outlive the loader.
class CheckResults {
 public:
  CheckResults(std::shared_ptr<const Plan> plan, std::unique_ptr<PinnedBuffer> memory)
      : plan_(std::move(plan)), memory_(std::move(memory)) {}

  static int64_t BytesFor(const Plan& plan) {
    return static_cast<int64_t>(plan.buckets().size() * sizeof(Mismatches) + plan.pieces().size() * sizeof(uint64_t));
  }
  std::byte* MismatchesAt(int64_t bucket) { return memory_->data() + bucket * sizeof(Mismatches); }
  std::byte* digests() { return MismatchesAt(static_cast<int64_t>(plan_->buckets().size())); }

  // REQUIRES: the copy of the bucket's Mismatches is done.
  absl::Status StatusOf(int64_t bucket) {
    Mismatches found;
    std::memcpy(&found, MismatchesAt(bucket), sizeof(found));
    if (found.count == 0) return absl::OkStatus();
    const uint32_t listed = std::min(found.count, Mismatches::kMax);
    return MismatchError(*plan_, bucket, *std::min_element(found.pieces, found.pieces + listed));
  }

 private:
  const std::shared_ptr<const Plan> plan_;
  const std::unique_ptr<PinnedBuffer> memory_;
};

class CudaLoader final : public Loader {
 public:
  CudaLoader(std::shared_ptr<const Device> device, CudaMemory& memory, std::shared_ptr<EventPool> events,
             std::shared_ptr<const Plan> plan, const ScatterTable& table, const std::vector<std::byte*>& handles)
      : device_(std::move(device)),
        memory_(memory),
        events_(std::move(events)),
        plan_(std::move(plan)),
        checks_(BuildChecks(*plan_)),
        copies_(BuildCopies(*plan_, table, handles)),
        checked_(plan_->buckets().size()) {}
  ~CudaLoader() override;
  absl::Status Init();

  CompletionPtr Check(int64_t bucket, const std::byte* wire, CompletionPtr after) override {
    return log_.Add(StartCheck(bucket, wire, after));
  }
  CompletionPtr Apply(int64_t bucket, const std::byte* wire, CompletionPtr after) override {
    return log_.Add(StartApply(bucket, wire, after));
  }
  absl::Status Retarget(ScatterTable table, std::vector<std::byte*> handles) override;
  CompletionPtr ApplyAll(const std::byte* image, CompletionPtr after) override {
    return log_.Add(StartApplyAll(image, after));
  }
  absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) override;
  bool wrote() const override { return wrote_; }

 private:
  using Work = absl::StatusOr<CudaCompletion::Ptr>;

  Work StartCheck(int64_t bucket, const std::byte* wire, const CompletionPtr& after);
  Work StartApply(int64_t bucket, const std::byte* wire, const CompletionPtr& after);
  Work StartApplyAll(const std::byte* image, const CompletionPtr& after);
  // Common to all that begins: not between two calls of one Finish, memory as the kernels want it, order on the stream.
  Work Begin(const std::byte* wire, const CompletionPtr& after);
  absl::Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes) const;
  absl::Status ReadBack();
  absl::Status UploadCopies();
  bool AnyApplyWrote() const;

  const std::shared_ptr<const Device> device_;
  CudaMemory& memory_;
  const std::shared_ptr<EventPool> events_;
  const std::shared_ptr<const Plan> plan_;
  const CheckTable checks_;
  CopyTable copies_;

  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Buffer> check_records_, check_items_, check_state_, copy_records_, copy_items_;
  CheckDevice check_arrays_;
  CopyDevice copy_arrays_;
  std::shared_ptr<CheckResults> results_;

  // Of the version that is being loaded.
  bool any_check_ = false;
  std::vector<bool> checked_;     // by bucket
  std::vector<int64_t> guarded_;  // buckets whose apply looks at their check first
  bool unguarded_ = false;        // there is an apply that does not
  bool wrote_ = false;
  WorkLog log_;
  CudaCompletion::Ptr finish_;  // everything is done and the results are on the host
};

// `values` on the device, in what `to` holds already where they fit: an allocation, and more so its end, may wait for
// all that runs on the device.
template <typename T>
absl::Status UploadInto(CudaMemory& memory, const std::vector<T>& values, std::unique_ptr<Buffer>* to) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  if (*to != nullptr && (*to)->bytes() >= bytes) return memory.Write(**to, values.data(), bytes, kPurpose);
  auto made = memory.Upload(values.data(), bytes, kPurpose);
  if (made.ok()) *to = *std::move(made);
  return made.status();
}

absl::Status CudaLoader::Init() {
  auto stream = Stream::Create(device_);
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  absl::Status status = UploadInto(memory_, checks_.records, &check_records_);
  if (status.ok()) status = UploadInto(memory_, checks_.items, &check_items_);
  if (status.ok()) status = UploadCopies();
  if (!status.ok()) return status;
  auto state = memory_.Allocate(std::max<int64_t>(checks_.state_bytes(), 1), kPurpose);
  if (!state.ok()) return state.status();
  check_state_ = *std::move(state);
  const int64_t result_bytes = std::max<int64_t>(CheckResults::BytesFor(*plan_), 1);
  auto results = PinnedBuffer::Create(device_, result_bytes, "the loader's results");
  if (!results.ok()) return results.status();
  results_ = std::make_shared<CheckResults>(plan_, *std::move(results));
  check_arrays_ = {.records = reinterpret_cast<const CheckRecord*>(check_records_->data()),
                   .items = reinterpret_cast<const uint32_t*>(check_items_->data()),
                   .state = check_state_->data()};
  return absl::OkStatus();
}

absl::Status CudaLoader::UploadCopies() {
  absl::Status status = UploadInto(memory_, copies_.records, &copy_records_);
  if (status.ok()) status = UploadInto(memory_, copies_.items, &copy_items_);
  if (!status.ok()) return status;
  copy_arrays_ = {.records = reinterpret_cast<const CopyRecord*>(copy_records_->data()),
                  .items = reinterpret_cast<const uint32_t*>(copy_items_->data())};
  return absl::OkStatus();
}

absl::Status CudaLoader::Retarget(ScatterTable table, std::vector<std::byte*> handles) {
  absl::Status status = CheckScatterTable(*plan_, table, handles.size());
  if (status.ok()) {
    copies_ = BuildCopies(*plan_, table, handles);
    status = UploadCopies();
  }
  if (!status.ok()) copies_ = BuildCopies(*plan_, {}, {});
  return status;
}

CudaLoader::~CudaLoader() {
  if (stream_ == nullptr) return;
  if (device_->MakeCurrent().ok() && DrainOrBreak(*events_, *stream_, "the loader")) return;
  // Freeing what a kernel may still use would wait for it, without a limit: left to the end of the process.
  for (std::unique_ptr<Buffer>* buffer :
       {&check_records_, &check_items_, &check_state_, &copy_records_, &copy_items_}) {
    (void)buffer->release();
  }
  if (results_ != nullptr) (void)new std::shared_ptr<CheckResults>(std::move(results_));
}

absl::Status CudaLoader::CopyToHost(std::byte* to, const std::byte* from, size_t bytes) const {
  return device_->Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_->get()), "cudaMemcpyAsync",
                        "the loader's results");
}

CudaLoader::Work CudaLoader::Begin(const std::byte* wire, const CompletionPtr& after) {
  if (finish_ != nullptr) {
    return absl::FailedPreconditionError(
        "load: the version before did not end in time, and is still waited for: call Finish again");
  }
  if (reinterpret_cast<uintptr_t>(wire) % kPieceAlign != 0) {
    return absl::InvalidArgumentError(absl::StrCat("load: the wire memory is not aligned to ", kPieceAlign, " bytes"));
  }
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  return OrderAfter(*stream_, after);
}

CudaLoader::Work CudaLoader::StartCheck(int64_t bucket, const std::byte* wire, const CompletionPtr& after) {
  if (absl::Status status = wsync::CheckBucket(*plan_, bucket, "load"); !status.ok()) return status;
  if (checked_[bucket]) {
    return absl::FailedPreconditionError(
        absl::StrCat("load: bucket ", bucket, " was checked already; Finish ends a version"));
  }
  Work before = Begin(wire, after);
  if (!before.ok()) return before;
  absl::Status status;
  if (!any_check_) {
    status = device_->Check(LaunchCheckReset(checks_, check_arrays_, stream_->get()), "LaunchCheckReset", "a version");
  }
  if (status.ok()) {
    status =
        device_->Check(LaunchCheck(checks_, check_arrays_, bucket, wire, stream_->get()), "LaunchCheck", "a bucket");
  }
  if (!status.ok()) return status;
  any_check_ = true;
  checked_[bucket] = true;
  const auto* found = reinterpret_cast<const std::byte*>(MismatchesOf(checks_, check_arrays_, bucket));
  status = CopyToHost(results_->MismatchesAt(bucket), found, sizeof(Mismatches));
  if (!status.ok()) return status;
  return CudaCompletion::Record(*events_, *stream_, *std::move(before),
                                [results = results_, bucket](bool come) -> std::optional<absl::Status> {
                                  if (!come) return std::nullopt;
                                  return results->StatusOf(bucket);
                                });
}

CudaLoader::Work CudaLoader::StartApply(int64_t bucket, const std::byte* wire, const CompletionPtr& after) {
  if (absl::Status status = wsync::CheckBucket(*plan_, bucket, "load"); !status.ok()) return status;
  Work before = Begin(wire, after);
  if (!before.ok()) return before;
  const Mismatches* guard = checked_[bucket] ? MismatchesOf(checks_, check_arrays_, bucket) : nullptr;
  const absl::Status status = device_->Check(
      LaunchCopyBucket(copies_, copy_arrays_, bucket, wire, stream_->get(), guard), "LaunchCopyBucket", "a bucket");
  if (!status.ok()) return status;
  if (guard != nullptr) guarded_.push_back(bucket);
  unguarded_ |= guard == nullptr;
  return CudaCompletion::Record(*events_, *stream_, *std::move(before));
}

CudaLoader::Work CudaLoader::StartApplyAll(const std::byte* image, const CompletionPtr& after) {
  Work before = Begin(image, after);
  if (!before.ok()) return before;
  const absl::Status status =
      device_->Check(LaunchCopyAll(copies_, copy_arrays_, image, stream_->get()), "LaunchCopyAll", "a version");
  if (!status.ok()) return status;
  unguarded_ = true;
  return CudaCompletion::Record(*events_, *stream_, *std::move(before));
}

// The device decided by the bytes that lay there, whatever became of the broadcast that was to bring them.
bool CudaLoader::AnyApplyWrote() const {
  return unguarded_ || std::any_of(guarded_.begin(), guarded_.end(),
                                   [this](int64_t bucket) { return results_->StatusOf(bucket).ok(); });
}

absl::Status CudaLoader::ReadBack() {
  absl::Status status = device_->MakeCurrent();
  const size_t bytes = plan_->pieces().size() * sizeof(uint64_t);
  if (status.ok() && any_check_) status = CopyToHost(results_->digests(), check_state_->data(), bytes);
  if (!status.ok()) return status;
  Work done = CudaCompletion::Record(*events_, *stream_, nullptr);
  if (!done.ok()) return done.status();
  finish_ = *std::move(done);
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const uint64_t>> CudaLoader::Finish(absl::Time deadline) {
  wrote_ = unguarded_ || !guarded_.empty();  // unless it is known better
  absl::Status status;
  if (finish_ == nullptr && !log_.empty()) status = ReadBack();
  if (finish_ != nullptr) {
    status = finish_->Wait(deadline);
    if (!finish_->Poll()) return absl::DeadlineExceededError("load: buckets are still in work at the deadline");
  }
  bool done = true;
  absl::Status result = log_.Wait(deadline, "load", &done);
  if (!done) return result;
  if (status.ok()) wrote_ = AnyApplyWrote();
  result.Update(status);
  const size_t pieces = plan_->pieces().size();
  if (!any_check_) std::memset(results_->digests(), 0, pieces * sizeof(uint64_t));
  any_check_ = unguarded_ = false;
  checked_.assign(checked_.size(), false);
  guarded_.clear();
  log_.Clear();
  finish_ = nullptr;
  if (!result.ok()) return result;
  return absl::MakeConstSpan(reinterpret_cast<const uint64_t*>(results_->digests()), pieces);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Loader>> NewCudaLoader(std::shared_ptr<const Device> device, CudaMemory& memory,
                                                      std::shared_ptr<EventPool> events,
                                                      std::shared_ptr<const Plan> plan, const ScatterTable& table,
                                                      const std::vector<std::byte*>& handles) {
  if (absl::Status status = CheckScatterTable(*plan, table, handles.size()); !status.ok()) return status;
  auto loader =
      std::make_unique<CudaLoader>(std::move(device), memory, std::move(events), std::move(plan), table, handles);
  if (absl::Status status = loader->Init(); !status.ok()) return status;
  return loader;
}

}  // namespace wsync::cuda
