#include "server/backend/cuda/quantizer.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/quantize_cuda.h"
#include "server/backend/checks.h"
#include "server/backend/cuda/completion.h"
#include "server/backend/cuda/work_log.h"
#include "server/backend/nonfinite.h"
#include "server/core/clock.h"

namespace wsync::cuda {
namespace {

constexpr int64_t kElementBytes = 8;                          // room for one element, after the results
constexpr absl::Duration kElementTimeout = absl::Seconds(5);  // to fetch it; takes microseconds
constexpr char kClosing[] = "the encoder";

EncodeTable BuildTable(const Plan& plan, const std::vector<const std::byte*>& tensors) {
  std::vector<EncodePiece> pieces;
  pieces.reserve(plan.pieces().size());
  for (const Piece& piece : plan.pieces()) {
    const Tensor& tensor = plan.catalog().tensors()[piece.tensor];
    const int64_t cols = ViewOf(tensor).cols;
    EncodePiece& out = pieces.emplace_back();
    out.source = tensors[piece.tensor] + piece.row_begin * cols * DtypeBytes(tensor.dtype);
    out.dtype = tensor.dtype;
    out.recipe = plan.RecipeOf(piece);
    out.row_begin = piece.row_begin;
    out.rows = piece.rows;
    out.cols = cols;
    out.data_offset = piece.data_offset;
    out.scale_offset = piece.scale_bytes > 0 ? piece.scale_offset : kNoScales;
  }
  // One slot for each tensor that has one scale; its pieces follow one another.
  int64_t slots = 0, last_tensor = -1;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!pieces[i].recipe.fp8 || pieces[i].recipe.granularity != Granularity::kTensor) continue;
    if (plan.pieces()[i].tensor != last_tensor) ++slots;
    last_tensor = plan.pieces()[i].tensor;
    pieces[i].amax_slot = slots - 1;
  }
  std::vector<EncodeBucket> buckets;
  for (const Bucket& bucket : plan.buckets()) {
    buckets.push_back({bucket.piece_begin, bucket.piece_end, bucket.digest_offset});
  }
  return BuildEncodeTable(pieces, buckets);
}

class CudaQuantizer final : public Quantizer {
 public:
  CudaQuantizer(std::shared_ptr<const Device> device, std::shared_ptr<EventPool> events,
                std::shared_ptr<const Plan> plan, std::vector<const std::byte*> tensors)
      : device_(std::move(device)),
        events_(std::move(events)),
        plan_(std::move(plan)),
        tensors_(std::move(tensors)),
        table_(BuildTable(*plan_, tensors_)),
        encoded_(plan_->buckets().size()) {}
  ~CudaQuantizer() override;
  absl::Status Init(CudaMemory& memory);

  CompletionPtr Encode(int64_t bucket, std::byte* wire, CompletionPtr after) override;
  absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) override;
  void Cancel(const absl::Status& why) override;

 private:
  absl::Status CheckEncode(int64_t bucket, const std::byte* wire) const;
  absl::StatusOr<CudaCompletion::Ptr> Start(int64_t bucket, std::byte* wire, const CompletionPtr& after);
  absl::Status Begin();
  absl::Status JoinStreams();
  absl::Status ReadBack();
  absl::Status CopyToHost(std::byte* to, const std::byte* from, int64_t bytes) const;
  absl::Status FindNonFinite();
  absl::Status cancelled() const;

  const std::shared_ptr<const Device> device_;
  const std::shared_ptr<EventPool> events_;
  const std::shared_ptr<const Plan> plan_;
  const std::vector<const std::byte*> tensors_;
  const EncodeTable table_;

  // Buckets alternate between two streams, so that the tail of one is hidden behind the next.
  std::array<std::unique_ptr<Stream>, 2> streams_;
  size_t next_stream_ = 0;
  std::unique_ptr<Buffer> records_, items_, state_;
  EncodeDevice arrays_;
  std::unique_ptr<PinnedBuffer> results_;

  // Of the version that is being encoded.
  bool begun_ = false;
  std::vector<bool> encoded_;   // by bucket
  WorkLog log_;                 // what failed, or came after work that may fail
  CudaCompletion::Ptr finish_;  // everything is encoded and the results are on the host

  mutable Mutex mu_;
  absl::Status cancelled_ ABSL_GUARDED_BY(mu_);
};

absl::Status CudaQuantizer::Init(CudaMemory& memory) {
  for (std::unique_ptr<Stream>& stream : streams_) {
    auto made = Stream::Create(device_);
    if (!made.ok()) return made.status();
    stream = *std::move(made);
  }
  constexpr char kPurpose[] = "the encoder's tables";
  auto records = memory.Upload(table_.records.data(),
                               static_cast<int64_t>(table_.records.size() * sizeof(EncodeRecord)), kPurpose);
  auto items =
      memory.Upload(table_.items.data(), static_cast<int64_t>(table_.items.size() * sizeof(uint32_t)), kPurpose);
  auto state = memory.Allocate(std::max<int64_t>(table_.state_bytes(), 1), kPurpose);
  auto results = PinnedBuffer::Create(device_, table_.results_bytes() + kElementBytes, "the encoder's results");
  for (const absl::Status& status : {records.status(), items.status(), state.status(), results.status()}) {
    if (!status.ok()) return status;
  }
  records_ = *std::move(records);
  items_ = *std::move(items);
  state_ = *std::move(state);
  results_ = *std::move(results);
  arrays_ = {.records = reinterpret_cast<const EncodeRecord*>(records_->data()),
             .items = reinterpret_cast<const uint32_t*>(items_->data()),
             .state = state_->data()};
  return absl::OkStatus();
}

CudaQuantizer::~CudaQuantizer() {
  bool idle = device_->MakeCurrent().ok();
  for (const std::unique_ptr<Stream>& stream : streams_) {
    if (stream != nullptr) idle = DrainOrBreak(*events_, *stream, kClosing) && idle;
  }
  if (idle) return;
  // Freeing what a kernel may still use would wait for it, without a limit: left to the end of the process.
  for (std::unique_ptr<Buffer>* buffer : {&records_, &items_, &state_}) (void)buffer->release();
  (void)results_.release();
}

absl::Status CudaQuantizer::cancelled() const {
  MutexLock lock(&mu_);
  return cancelled_;
}

void CudaQuantizer::Cancel(const absl::Status& why) {
  MutexLock lock(&mu_);
  cancelled_.Update(why);
}

CompletionPtr CudaQuantizer::Encode(int64_t bucket, std::byte* wire, CompletionPtr after) {
  absl::StatusOr<CudaCompletion::Ptr> work = Start(bucket, wire, after);
  // Without anything before it that may fail, it cannot fail either, but for what Finish finds.
  if (work.ok() && after == nullptr) return *std::move(work);
  return log_.Add(std::move(work));
}

absl::Status CudaQuantizer::CheckEncode(int64_t bucket, const std::byte* wire) const {
  if (absl::Status status = CheckBucket(*plan_, bucket, "encode"); !status.ok()) return status;
  if (absl::Status status = cancelled(); !status.ok()) return status;
  if (reinterpret_cast<uintptr_t>(wire) % kWireAlign != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("encode: the wire memory of bucket ", bucket, " is not aligned to ", kWireAlign, " bytes"));
  }
  if (finish_ != nullptr) {
    return absl::FailedPreconditionError(
        "encode: the version before did not end in time, and is still waited for: call Finish again");
  }
  if (encoded_[bucket]) {
    return absl::FailedPreconditionError(
        absl::StrCat("encode: bucket ", bucket, " was encoded already; Finish ends a version"));
  }
  return absl::OkStatus();
}

absl::StatusOr<CudaCompletion::Ptr> CudaQuantizer::Start(int64_t bucket, std::byte* wire, const CompletionPtr& after) {
  if (absl::Status status = CheckEncode(bucket, wire); !status.ok()) return status;
  if (absl::Status status = device_->MakeCurrent(); !status.ok()) return status;
  if (absl::Status status = Begin(); !status.ok()) return status;
  // The first bucket of a version is what the wire waits for, and nothing is on it yet: it gets the whole GPU.
  const bool first = next_stream_ == 0;
  const Stream& stream = *streams_[next_stream_++ % streams_.size()];
  absl::StatusOr<CudaCompletion::Ptr> before = OrderAfter(stream, after);
  if (!before.ok()) return before.status();
  absl::Status status = device_->Check(
      LaunchEncode(table_, arrays_, bucket, wire, stream.get(), first ? Pace::kFastest : Pace::kBesideTransfer),
      "LaunchEncode", "a bucket");
  if (!status.ok()) return status;
  encoded_[bucket] = true;
  absl::StatusOr<CudaCompletion::Ptr> encoded = CudaCompletion::Record(*events_, stream, *std::move(before));
  if (first && encoded.ok()) status = OrderAfter(*streams_[1], *encoded).status();
  return status.ok() ? std::move(encoded) : status;
}

// Once per version: state zeroed, and the largest magnitudes found where a tensor has one scale.
absl::Status CudaQuantizer::Begin() {
  if (begun_) return absl::OkStatus();
  const cudaStream_t stream = streams_[0]->get();
  absl::Status status = device_->Check(LaunchEncodeReset(table_, arrays_, stream), "LaunchEncodeReset", "a version");
  if (status.ok()) status = device_->Check(LaunchAmax(table_, arrays_, stream), "LaunchAmax", "a version");
  if (!status.ok()) return status;
  auto ready = CudaCompletion::Record(*events_, *streams_[0], nullptr);
  status = ready.ok() ? OrderAfter(*streams_[1], *std::move(ready)).status() : ready.status();
  begun_ = status.ok();
  return status;
}

// What the first stream gets from now on comes after everything in both.
absl::Status CudaQuantizer::JoinStreams() {
  auto other = CudaCompletion::Record(*events_, *streams_[1], nullptr);
  return other.ok() ? OrderAfter(*streams_[0], *std::move(other)).status() : other.status();
}

absl::Status CudaQuantizer::CopyToHost(std::byte* to, const std::byte* from, int64_t bytes) const {
  return device_->Check(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, streams_[0]->get()),
      "cudaMemcpyAsync", "the encoder's results");
}

absl::Status CudaQuantizer::ReadBack() {
  absl::Status status = device_->MakeCurrent();
  if (status.ok()) status = JoinStreams();
  if (status.ok() && table_.results_bytes() > 0) {
    status = CopyToHost(results_->data(), state_->data(), table_.results_bytes());
  }
  if (!status.ok()) return status;
  auto done = CudaCompletion::Record(*events_, *streams_[0], nullptr);
  if (!done.ok()) return done.status();
  finish_ = *std::move(done);
  return absl::OkStatus();
}

// The first in catalog order, so that every run names the same one.
absl::Status CudaQuantizer::FindNonFinite() {
  const auto pieces = static_cast<size_t>(table_.pieces());
  const std::byte* const entries = results_->data() + pieces * sizeof(uint64_t);
  for (size_t i = 0; i < pieces; ++i) {
    uint64_t entry = 0;
    std::memcpy(&entry, entries + i * sizeof(entry), sizeof(entry));
    const int64_t element = FirstNonFiniteOf(entry);
    if (element == kNoIndex) continue;
    const int64_t tensor_index = plan_->pieces()[i].tensor;
    const Tensor& tensor = plan_->catalog().tensors()[tensor_index];
    const int64_t bytes = DtypeBytes(tensor.dtype);
    std::byte* const value = results_->data() + table_.results_bytes();
    absl::Status status = CopyToHost(value, tensors_[tensor_index] + element * bytes, bytes);
    auto fetched = CudaCompletion::Record(*events_, *streams_[0], nullptr);
    status.Update(fetched.status());
    if (status.ok()) status = (*fetched)->Wait(MonotonicNow() + kElementTimeout);
    return status.ok() ? NonFiniteError(tensor, plan_->recipes()[tensor_index].recipe, element, value) : status;
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Span<const uint64_t>> CudaQuantizer::Finish(absl::Time deadline) {
  absl::Status status;
  if (begun_ && finish_ == nullptr) status = ReadBack();
  // In order and as they end: asked for only after the last one, hundreds of events would be asked for while the group
  // waits.
  bool done = true;
  const absl::Status first = log_.Wait(deadline, "encode", &done);
  if (!done) return first;
  if (finish_ != nullptr) {
    status = finish_->Wait(deadline);
    if (!finish_->Poll()) return absl::DeadlineExceededError("encode: buckets are still in work at the deadline");
  }
  // The earliest cause first: an encode that failed, then what was found in the weights, then a call for the end.
  absl::Status result = first;
  result.Update(status);
  const auto pieces = plan_->pieces().size();
  if (begun_ && status.ok()) {
    result.Update(FindNonFinite());
  } else {
    std::memset(results_->data(), 0, pieces * sizeof(uint64_t));
  }
  {
    MutexLock lock(&mu_);
    result.Update(std::exchange(cancelled_, absl::OkStatus()));
  }
  begun_ = false;
  finish_ = nullptr;
  log_.Clear();
  encoded_.assign(encoded_.size(), false);
  next_stream_ = 0;
  if (!result.ok()) return result;
  return absl::MakeConstSpan(reinterpret_cast<const uint64_t*>(results_->data()), pieces);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Quantizer>> NewCudaQuantizer(std::shared_ptr<const Device> device, CudaMemory& memory,
                                                            std::shared_ptr<EventPool> events,
                                                            std::shared_ptr<const Plan> plan,
                                                            std::vector<const std::byte*> tensors) {
  if (absl::Status status = CheckSources(*plan, tensors); !status.ok()) return status;
  auto quantizer =
      std::make_unique<CudaQuantizer>(std::move(device), std::move(events), std::move(plan), std::move(tensors));
  if (absl::Status status = quantizer->Init(memory); !status.ok()) return status;
  return quantizer;
}

}  // namespace wsync::cuda
