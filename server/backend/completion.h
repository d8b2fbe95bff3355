// A point in device work that other work can be ordered after, and that a host thread can wait for.
//
// host: a finished flag; cuda: an event. Threads: any. The host never waits for one inside a bucket loop: it passes
// completions on as `after`. What takes an `after` takes null ("already done, OK") or a completion of the same backend,
// and fails with `after`'s error without touching memory when `after` failed.
#ifndef WSYNC_SERVER_BACKEND_COMPLETION_H_
#define WSYNC_SERVER_BACKEND_COMPLETION_H_

#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace wsync {

class Completion {
 public:
  virtual ~Completion() = default;
  // OK, the work's own error, or DEADLINE_EXCEEDED while it still runs. `deadline` is on MonotonicNow()'s clock.
  virtual absl::Status Wait(absl::Time deadline) = 0;
  // The result, or nullopt while it runs. Never blocks.
  virtual std::optional<absl::Status> Poll() = 0;
};
using CompletionPtr = std::shared_ptr<Completion>;

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_COMPLETION_H_
