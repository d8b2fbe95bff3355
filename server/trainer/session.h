// One data-plane session of the source: a Transport that obeys the job it serves.
//
// Made, used and destroyed on one thread; the job's Cancel reaches it from any. SessionProgress is what other threads
// see of it.
#ifndef WSYNC_SERVER_TRAINER_SESSION_H_
#define WSYNC_SERVER_TRAINER_SESSION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/backend/backend.h"
#include "server/core/sync.h"
#include "server/trainer/source_job.h"

namespace wsync {

// Bytes moved by the newest session: lives as long as the publisher, sessions come and go.
class SessionProgress {
 public:
  void Show(const Transport* transport);  // null: the session ends; its last count stays
  void Reset();
  int64_t moved_bytes() const;

 private:
  mutable Mutex mu_;
  const Transport* transport_ ABSL_GUARDED_BY(mu_) = nullptr;
  int64_t last_ ABSL_GUARDED_BY(mu_) = 0;
};

// Deadlines are on MonotonicNow()'s clock.
struct SessionLimits {
  absl::Time connect;
  absl::Time transfer;
};

class Session {
 public:
  // The backend's error, or the job's when it was called off before. Does not connect.
  static absl::StatusOr<std::unique_ptr<Session>> Create(Backend& backend, std::shared_ptr<SourceJob> job,
                                                         SessionProgress* progress);
  ~Session();

  absl::Status Connect(absl::Time deadline);
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after);
  // Waits for all of `sends`. The first error; the job's reason when it was called off; DEADLINE_EXCEEDED says how far
  // it came.
  absl::Status WaitSent(absl::Span<const CompletionPtr> sends, absl::Time deadline);

 private:
  Session(std::unique_ptr<Transport> transport, std::shared_ptr<SourceJob> job, SessionProgress* progress);
  absl::Status Explain(absl::Status status) const;

  std::shared_ptr<SourceJob> job_;
  SessionProgress* progress_;
  std::unique_ptr<Transport> transport_;
  std::stop_callback<std::function<void()>> on_cancel_;  // last: unhooked before the transport goes
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_SESSION_H_
