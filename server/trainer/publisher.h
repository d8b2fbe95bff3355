// The source's pipeline: carries out what the coordinator's StartSource, CancelSource and CheckContent ask for.
//
//   full: encode every bucket into the image ─▶ released        (thread "wsync-encode")
//                 └─ broadcast each bucket behind it ─▶ sent    (thread "wsync-send", after connecting)
//   ring: encode and broadcast through K slots ─▶ released, sent (thread "wsync-encode")
//
// In full mode a version that was encoded stays in the image until the next one: a restart, or a sink that comes late,
// is served from it and the trainer's weights are not read again. Every call is thread-safe; Start, Cancel and
// CheckContent return at once, and the events they lead to come from the publisher's threads.
#ifndef WSYNC_SERVER_TRAINER_PUBLISHER_H_
#define WSYNC_SERVER_TRAINER_PUBLISHER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/core/modes.h"
#include "server/core/sync.h"
#include "server/trainer/encoded_buckets.h"
#include "server/trainer/encoder.h"
#include "server/trainer/sender.h"
#include "server/trainer/session.h"
#include "server/trainer/source_job.h"
#include "server/trainer/stream_order.h"
#include "server/trainer/watched_job.h"

namespace wsync {

struct PublisherOptions {
  SourceMode mode = SourceMode::kFull;
  int32_t ring_slots = 3;
  // Both beyond what the coordinator grants the members: it notices first and names the culprit.
  absl::Duration connect_timeout = absl::Seconds(9);
  absl::Duration transfer_timeout = absl::Seconds(9);  // plus wire bytes / min rate
  double min_rate_bytes_per_second = 50e6;
  // For the training process's stream to get to the point of its publish. Below what the coordinator grants the
  // members: they must not be blamed for it.
  absl::Duration start_timeout = absl::Seconds(8);
};

struct SourceProgress {
  uint64_t version = 0;  // 0: none yet
  bool encoding = false;
  int64_t encoded_bytes = 0;  // wire bytes
  int64_t sent_bytes = 0;     // to the slowest sink
  int64_t total_bytes = 0;
};

class Publisher {
 public:
  // `report` is called from the publisher's threads and must not block.
  Publisher(PublisherOptions options, Backend* backend, std::function<void(Event)> report);
  ~Publisher();  // Stop

  // Replaces the registered memory and allocates the image or ring; waits until that is done. An image of the same plan
  // is kept. RESOURCE_EXHAUSTED: nothing is registered then.
  absl::Status Adopt(std::shared_ptr<const Registration> registration);
  // Waits until no registered memory is mapped any more; what was encoded can still be sent.
  void Release();
  // Calls off whatever runs, and frees all memory; waits until that is done.
  void Drop(const absl::Status& why);

  // `order`: of the publish that it is a part of; null: none.
  void Start(const action::StartSource& start, std::shared_ptr<StreamOrder> order = nullptr);
  void Cancel(const action::CancelSource& cancel);  // takes effect even while a session connects; no event follows
  void CheckContent(const action::CheckContent& check, std::shared_ptr<StreamOrder> order = nullptr);

  SourceProgress Progress() const;
  // What the source sees of the sinks in this epoch, by rank; none: its data plane cannot tell.
  std::optional<std::vector<PeerProgress>> Peers(uint64_t epoch) const;
  // One thread, a few times a second. INTERNAL: one of its threads hangs; see WatchedJob.
  absl::Status Look(absl::Time now);
  void Stop();

 private:
  using Task = std::function<void()>;  // runs on the encode thread
  struct Command {
    std::shared_ptr<SourceJob> job;  // null: not something that can be called off
    Task run;
  };
  struct Retained {
    uint64_t version = 0;  // 0: nothing
    std::shared_ptr<EncodedBuckets> encodes;
    absl::Status failure;  // why it cannot be sent
  };

  void Run();
  bool Push(Command command);                                // false: stopping
  absl::Status Execute(std::function<absl::Status()> task);  // on the encode thread; waits
  void CallOff(const absl::Status& why);
  std::vector<std::shared_ptr<SourceJob>> LiveJobs() const;

  // The rest but Sent runs on the encode thread.
  void Serve(const std::shared_ptr<SourceJob>& job);
  void ServeFromImage(const std::shared_ptr<SourceJob>& job);
  void BeginImage(const std::shared_ptr<SourceJob>& job);
  absl::StatusOr<Hash128> EncodeImage(const SourceJob& job);
  void FinishImage(const std::shared_ptr<SourceJob>& job, const absl::StatusOr<Hash128>& digest, absl::Time begun);
  void SendImage(const std::shared_ptr<SourceJob>& job);
  void Sent(const SendTask& task, const absl::Status& status);  // on the send thread
  void ServeThroughRing(const std::shared_ptr<SourceJob>& job);
  absl::StatusOr<Hash128> StreamThroughRing(const std::shared_ptr<SourceJob>& job, bool* encode_failed);
  void Check(const std::shared_ptr<SourceJob>& job);

  CompletionPtr EncodeBucket(int64_t bucket, CompletionPtr after);
  // The job's order, if it has one: opened before anything else, and awaited before the first encode.
  absl::Status OpenOrder(const SourceJob& job);
  absl::Status AwaitStart(const SourceJob& job) const;
  absl::StatusOr<Hash128> FinishEncoding(const SourceJob& job, absl::Time deadline);
  absl::Status CannotEncode() const;
  void CloseSessions();
  void Forget(uint64_t version);
  void BeginProgress(uint64_t version);
  void EndProgress();
  void Fail(const SourceJob& job, const absl::Status& status, bool version_lost);
  SessionLimits Limits() const;

  const PublisherOptions options_;
  Backend* const backend_;
  const std::function<void(Event)> report_;
  SessionProgress session_progress_;

  // The encode thread's own.
  Encoder encoder_;
  ClientEvents client_events_;  // of the process whose memory encoder_ has
  Retained retained_;
  std::shared_ptr<EncodedBuckets> running_;  // the encodes of the newest version
  uint64_t ring_released_ = 0;               // ring mode: the version whose weights may have changed since
  std::unique_ptr<Session> ring_session_;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Command> queue_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<SourceJob> current_ ABSL_GUARDED_BY(mu_);     // the newest start that was begun
  std::shared_ptr<SourceJob> checking_ ABSL_GUARDED_BY(mu_);    // the newest check that was begun
  std::shared_ptr<SourceJob> unreleased_ ABSL_GUARDED_BY(mu_);  // its encoding has not ended: it is not `sent` yet
  bool sent_early_ ABSL_GUARDED_BY(mu_) = false;                // unreleased_ is on the wire already
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  WatchedJob at_work_ ABSL_GUARDED_BY(mu_);
  SourceProgress progress_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<EncodedBuckets> encodes_ ABSL_GUARDED_BY(mu_);  // of progress_.version

  std::unique_ptr<Sender> sender_;  // full mode
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_PUBLISHER_H_
