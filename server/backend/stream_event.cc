#include "server/backend/stream_event.h"

#include <optional>

#include "server/backend/backoff.h"
#include "server/core/clock.h"

namespace wsync {

absl::Status AwaitRecorded(StreamEvent& event, absl::Duration limit, const std::function<absl::Status()>& called_off,
                           const std::string& late) {
  const CompletionPtr recorded = event.Recorded();
  const absl::Time deadline = MonotonicNow() + limit;
  Backoff backoff;
  while (true) {
    if (const std::optional<absl::Status> come = recorded->Poll()) return *come;
    if (called_off != nullptr) {
      if (absl::Status why = called_off(); !why.ok()) return why;
    }
    if (!backoff.Pause(deadline)) return absl::DeadlineExceededError(late);
  }
}

}  // namespace wsync
