#include "server/backend/cuda/work_log.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync::cuda {
namespace {

// An aborted transport, which work may wait for, has ended within 5 s or is given up (NcclSession); this is beyond.
constexpr absl::Duration kDrainLimit = absl::Seconds(10);

}  // namespace

CompletionPtr WorkLog::Add(absl::StatusOr<CudaCompletion::Ptr> work) {
  all_.push_back(work.ok() ? *std::move(work) : CudaCompletion::Failed(work.status()));
  return all_.back();
}

absl::Status WorkLog::Wait(absl::Time deadline, const char* what, bool* done) const {
  absl::Status first;
  for (const CudaCompletion::Ptr& work : all_) {
    work->Wait(deadline).IgnoreError();
    // Asked again: a Wait that ran out and work that failed with DEADLINE_EXCEEDED look the same.
    const std::optional<absl::Status> result = work->Poll();
    if (!result) {
      *done = false;
      return absl::DeadlineExceededError(absl::StrCat(what, ": buckets are still in work at the deadline"));
    }
    first.Update(*result);
  }
  *done = true;
  return first;
}

bool DrainOrBreak(EventPool& events, const Stream& stream, const char* what) {
  if (!stream.device().health().ok()) return false;  // a lost context has nothing to wait for
  const absl::StatusOr<CudaCompletion::Ptr> last = CudaCompletion::Record(events, stream, nullptr);
  absl::Status status = last.status();
  if (last.ok()) status = (*last)->Wait(MonotonicNow() + kDrainLimit);
  if (status.ok()) return true;
  stream.device().Break(
      absl::InternalError(absl::StrCat(what, " on ", stream.device().name(), " has work left that does not end (",
                                       std::string(status.message()), "): restart the agent")));
  return false;
}

}  // namespace wsync::cuda
