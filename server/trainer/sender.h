// Puts encoded buckets on the wire, beside the encode thread: the trainer's release never waits for a peer.
//
// Owns one thread ("wsync-send") and the current Session. A session stays open after its last byte until a task of
// another session, Close or Stop: no sink sees its end before it has read everything, and the next version of the same
// members goes on in it. Thread-safe.
#ifndef WSYNC_SERVER_TRAINER_SENDER_H_
#define WSYNC_SERVER_TRAINER_SENDER_H_

#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "absl/status/status.h"
#include "server/backend/backend.h"
#include "server/core/sync.h"
#include "server/trainer/encoded_buckets.h"
#include "server/trainer/encoder.h"
#include "server/trainer/session.h"
#include "server/trainer/source_job.h"
#include "server/trainer/watched_job.h"

namespace wsync {

struct SendTask {
  std::shared_ptr<SourceJob> job;
  EncodedImage image;                       // every bucket of it is sent
  std::shared_ptr<EncodedBuckets> encodes;  // each behind its own
  SessionLimits limits;
};

class Sender {
 public:
  // Called on the sender's thread with what became of a task: the job's reason when it was called off.
  using Done = std::function<void(const SendTask& task, const absl::Status& status)>;

  Sender(Backend* backend, SessionProgress* progress, Done done);
  ~Sender();  // Stop

  // Takes over from whatever is being sent.
  void Send(SendTask task);
  // Calls off what is being sent. Returns when no task runs and no memory is being read; an idle session stays open.
  void Quiesce();
  // Quiesce, and no session is open any more.
  void Close();
  void Stop();
  // See WatchedJob.
  absl::Status Look(absl::Time now);

 private:
  void Run();
  absl::Status Serve(const SendTask& task);

  Backend* const backend_;
  SessionProgress* const progress_;
  const Done done_;
  Mutex mu_;
  CondVar changed_;
  std::optional<SendTask> next_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<SourceJob> job_ ABSL_GUARDED_BY(mu_);  // of the newest task, until it is done; null: nobody wants one
  bool running_ ABSL_GUARDED_BY(mu_) = false;            // a task waits or runs
  WatchedJob at_work_ ABSL_GUARDED_BY(mu_){"send", WatchedJob::Ends::kOnceCancelled};
  bool closing_ ABSL_GUARDED_BY(mu_) = false;  // the session is to be closed
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<Session> session_;  // the thread's own
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_SENDER_H_
