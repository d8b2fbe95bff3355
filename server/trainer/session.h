// One data-plane session of the source: a Transport that serves one job after another, as long as their members are the
// same and nothing in it was broken off.
//
// Made, used and destroyed on one thread; the present job's Cancel reaches it from any. SessionProgress is what other
// threads see of it.
#ifndef WSYNC_SERVER_TRAINER_SESSION_H_
#define WSYNC_SERVER_TRAINER_SESSION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/backend/backend.h"
#include "server/core/sync.h"
#include "server/trainer/source_job.h"

namespace wsync {

// Bytes moved for the newest job: lives as long as the publisher, sessions come and go.
class SessionProgress {
 public:
  void Begin(const Transport* transport, uint64_t epoch);  // counts from here
  void End();                                              // the transport goes; its last count stays
  void Reset();
  int64_t moved_bytes() const;
  // What the transport saw of its sinks in the job of this epoch; the sinks of a job that has none yet have not come.
  // None where the transport cannot tell.
  std::optional<std::vector<PeerProgress>> peers(uint64_t epoch) const;

 private:
  mutable Mutex mu_;
  const Transport* transport_ ABSL_GUARDED_BY(mu_) = nullptr;
  int64_t before_ ABSL_GUARDED_BY(mu_) = 0;  // what the transport had moved for earlier jobs
  int64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t epoch_ ABSL_GUARDED_BY(mu_) = 0;                                     // of the newest job
  std::optional<std::vector<PeerProgress>> peers_before_ ABSL_GUARDED_BY(mu_);  // when that began
  std::optional<std::vector<PeerProgress>> last_peers_ ABSL_GUARDED_BY(mu_);    // when its transport went
};

// Deadlines are on MonotonicNow()'s clock.
struct SessionLimits {
  absl::Time connect;
  absl::Time transfer;
};

class Session {
 public:
  // Makes `*session` ready for the job: keeps it if it is the job's (same token, nothing failed in it), else closes it
  // and opens the job's. The backend's error, or the job's reason when it was called off; `*session` is null then.
  static absl::Status Open(Backend& backend, std::shared_ptr<SourceJob> job, SessionProgress* progress,
                           absl::Time connect_deadline, std::unique_ptr<Session>* session);
  ~Session();

  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after);
  // Waits for all of `sends` and ends the job's use of the session: from then on its Cancel does nothing here. The
  // first error, after which the session must be closed; the job's reason when it was called off; DEADLINE_EXCEEDED
  // says how far it came.
  absl::Status WaitSent(absl::Span<const CompletionPtr> sends, absl::Time deadline);

 private:
  using OnCancel = std::stop_callback<std::function<void()>>;

  Session(std::unique_ptr<Transport> transport, std::string token, SessionProgress* progress);
  void Serve(std::shared_ptr<SourceJob> job);
  absl::Status Explain(absl::Status status) const;

  const std::string token_;
  SessionProgress* const progress_;
  std::unique_ptr<Transport> transport_;
  std::shared_ptr<SourceJob> job_;
  bool idle_ = false;                  // connected, and the last job's bytes are all sent
  std::optional<OnCancel> on_cancel_;  // last: unhooked before the transport goes
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_SESSION_H_
