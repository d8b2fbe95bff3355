#include "server/trainer/stream_order.h"

#include <algorithm>

#include "server/core/clock.h"

namespace wsync {
namespace {

// How late a version that was called off is noticed while it waits for the training process's stream.
constexpr absl::Duration kLook = absl::Milliseconds(20);

}  // namespace

absl::Status StreamOrder::Begin(ClientEvents* events, Memory& memory) {
  if (was_marked_) {
    return absl::FailedPreconditionError(
        "its weights were given back to the training process's stream, and cannot be read again: publish again");
  }
  if (after_handle_.has_value()) {
    auto opened = events->Open(memory, *after_handle_);
    if (!opened.ok()) return opened.status();
    after_ = *std::move(opened);
    start_ = after_->Recorded();
  }
  if (released_handle_.has_value()) {
    auto opened = events->Open(memory, *released_handle_);
    if (!opened.ok()) return opened.status();
    released_ = *std::move(opened);
  }
  return absl::OkStatus();
}

absl::Status StreamOrder::MarkReleased(absl::Span<const CompletionPtr> encodes) {
  if (released_ == nullptr) return absl::OkStatus();
  if (absl::Status status = released_->Mark(encodes); !status.ok()) return status;
  was_marked_ = true;
  marked_();
  return absl::OkStatus();
}

absl::Status StreamOrder::AwaitStart(absl::Duration limit, const std::function<absl::Status()>& called_off) const {
  if (start_ == nullptr) return absl::OkStatus();
  const absl::Time deadline = MonotonicNow() + limit;
  while (true) {
    start_->Wait(std::min(deadline, MonotonicNow() + kLook)).IgnoreError();
    if (start_->Poll().has_value()) return absl::OkStatus();  // its own error, if any, is its encodes'
    if (absl::Status why = called_off(); !why.ok()) return why;
    if (MonotonicNow() < deadline) continue;
    return absl::DeadlineExceededError(absl::StrCat(
        "the training process's stream did not get to the point of its publish within ", absl::FormatDuration(limit),
        ": publish when the work before it is nearly done, or raise coordinator.stage_timeout_ms"));
  }
}

void StreamOrder::GiveUp(ClientEvents* events, const absl::Status& why) {
  after_->GiveUp(why);
  events->Close(after_.get());
}

}  // namespace wsync
