#include "server/trainer/encoder.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync {
namespace {

// Encodes that are running when a version is cancelled finish their bucket; 5 s is far more than any bucket takes.
constexpr absl::Duration kCancelGrace = absl::Seconds(5);

}  // namespace

absl::Status Encoder::Adopt(std::shared_ptr<const Registration> registration) {
  Release();
  if (!Fits(*registration->plan())) {
    Drop();
    const Plan& plan = *registration->plan();
    ring_ = RingLayout(plan, ring_slots_);
    const int64_t bytes = mode_ == SourceMode::kFull ? plan.image_bytes() : ring_.bytes();
    auto memory = backend_->memory().Allocate(std::max<int64_t>(bytes, kPieceAlign),
                                              mode_ == SourceMode::kFull ? "the encoded image" : "the ring of buckets");
    if (!memory.ok()) return memory.status();
    memory_ = *std::move(memory);
  }
  plan_ = registration->plan();
  auto quantizer = backend_->NewQuantizer(plan_, registration->addresses());
  if (!quantizer.ok()) return quantizer.status();
  registration_ = std::move(registration);
  quantizer_ = *std::move(quantizer);
  return absl::OkStatus();
}

void Encoder::Release() {
  quantizer_ = nullptr;
  registration_ = nullptr;
}

void Encoder::Drop() {
  Release();
  memory_ = nullptr;
  plan_ = nullptr;
}

std::byte* Encoder::Place(int64_t bucket) const {
  if (mode_ == SourceMode::kFull) return memory_->data() + plan_->buckets()[bucket].image_offset;
  return memory_->data() + ring_.OffsetOf(bucket);
}

CompletionPtr Encoder::Encode(int64_t bucket, CompletionPtr after) {
  return quantizer_->Encode(bucket, Place(bucket), std::move(after));
}

absl::StatusOr<Hash128> Encoder::Finish(absl::Time deadline) {
  auto digests = quantizer_->Finish(deadline);
  if (absl::IsDeadlineExceeded(digests.status())) {
    // Returning now would let the trainer change weights that are still being read.
    const absl::Status late = digests.status();
    quantizer_->Cancel(late);
    (void)quantizer_->Finish(MonotonicNow() + kCancelGrace);
    digests = late;
  }
  scratch_ = nullptr;
  if (!digests.ok()) return digests.status();
  return plan_->ContentDigest(*digests);
}

absl::Status Encoder::EncodeForDigest() {
  std::byte* wire = memory_->data();  // a ring is free between versions, and holds its largest bucket anywhere
  if (mode_ == SourceMode::kFull) {
    const int64_t bytes = std::max<int64_t>(plan_->max_bucket_bytes(), kPieceAlign);
    auto scratch = backend_->memory().Allocate(bytes, "a bucket to compare with");
    if (!scratch.ok()) return scratch.status();
    scratch_ = *std::move(scratch);
    wire = scratch_->data();
  }
  CompletionPtr previous;
  for (size_t k = 0; k < plan_->buckets().size(); ++k) {
    previous = quantizer_->Encode(static_cast<int64_t>(k), wire, previous);
  }
  return absl::OkStatus();
}

}  // namespace wsync
