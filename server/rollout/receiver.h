// The one thread of a sink that touches its device: plan, receive memory, transport, loader and the engine's mappings
// are its own, and every long or blocking thing happens there.
//
// Calls return at once, from one thread (the controller's); each posts a job, and jobs run in order. `done` is called
// on the receiver's thread, once, unless Stop dropped the job. Cancel and progress take effect beside the running job.
#ifndef WSYNC_SERVER_ROLLOUT_RECEIVER_H_
#define WSYNC_SERVER_ROLLOUT_RECEIVER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/backend/client_events.h"
#include "server/core/seen_running.h"
#include "server/core/sync.h"
#include "server/rollout/attachment.h"
#include "server/rollout/catalog_assembler.h"
#include "server/rollout/layer_loans.h"
#include "server/rollout/receive_pipeline.h"
#include "server/rollout/serial_thread.h"
#include "server/rollout/sink_state.h"

namespace wsync {

struct ReceiverOptions {
  SinkMode mode = SinkMode::kStaged;
  int32_t ring_slots = 3;
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration stall_timeout = absl::Seconds(30);
  // For the engine's stream to get to the point of its pause: as long as the coordinator waits for an apply by default.
  absl::Duration pause_timeout = absl::Seconds(8);
  // For an engine with a layer window to give memory for a layer, or to take one. Below the coordinator's default for
  // staging (8 s), so that it is this sink, which knows engine and layer, that says what is the matter.
  absl::Duration layer_timeout = absl::Seconds(6);
  // What was called off is over by then: well beyond what it takes to notice. An apply, which nobody calls off, has
  // this for its copies, after the engine's pause, and more for many bytes.
  absl::Duration end_limit = absl::Seconds(8);
};

struct PlanResult {
  absl::Status status;               // why this sink cannot take part
  std::shared_ptr<const Plan> plan;  // null when not OK
  Hash128 plan_hash;                 // announced
  bool changed = true;               // false: same plan as before, what is staged is still there
  absl::Status attachment;           // not OK: the engine's destinations do not fit any more, and were let go
};

struct AttachInfo {
  Hash128 plan_hash;
  int64_t bytes_per_version = 0;
};

// Of a version that lands in place, where the engine asked for it; called on the receiver's thread before its `done`.
struct LayerCalls {
  std::function<void(LayerReady)> ready = nullptr;    // every byte of this layer is in its memory
  std::function<void(LayerWanted)> wanted = nullptr;  // of a layer window: answered by Answer, or the version fails
};

class Receiver {
 public:
  // `backend` must outlive the receiver.
  Receiver(Backend* backend, ReceiverOptions options);
  ~Receiver();

  // Makes the plan, takes receive memory for it (RESOURCE_EXHAUSTED becomes the result's status) and fits the attached
  // engine to it.
  void SetCatalog(AnnouncedCatalog catalog, std::function<void(PlanResult)> done);
  // After a RESOURCE_EXHAUSTED: tries again to take memory for the same plan.
  void AskForRoomAgain(std::function<void(PlanResult)> done);
  void Attach(AttachSpec spec, std::function<void(absl::StatusOr<AttachInfo>)> done);
  void Detach();

  // Goes on in the open session when that is the one asked for and nothing failed in it; else closes it and opens this.
  void Connect(SessionSpec session, std::function<void(sink::Connected)> done);
  // In place, live memory is written once EnginePaused was called as well; until then only the ring fills up.
  void Receive(std::function<void(sink::Received)> done, LayerCalls layers = {});
  // For the newest Receive. `after`: the engine's stream reads the weights up to here; none: it has stopped reading.
  void EnginePaused(std::optional<EventHandle> after = std::nullopt);
  // What the engine says of a layer; takes effect beside the running Receive. Late answers change nothing.
  void Answer(LayerAnswer answer) { loans_.Answer(std::move(answer)); }
  void Apply(std::function<void(sink::ApplyDone)> done, std::optional<EventHandle> after = std::nullopt);
  // The content digest of what the engine's memory holds; see Attachment::Verify. A Connect ends it: ABORTED.
  // REQUIRES: the staging copy, in mode staged, holds what was applied last.
  void Verify(std::function<void(absl::StatusOr<Hash128>)> done);
  // Ends every Connect and Receive called so far with `why`, soon. Apply runs on: half a copy is worse than none.
  void Cancel(const absl::Status& why);

  // One thread, a few times a second. INTERNAL: its thread hangs in the device or the network, which nothing but a new
  // process mends.
  absl::Status Look(absl::Time now);
  // Not OK, once a Receive, an Apply or a Verify found it: the attached engine's memory is gone. See Attachment.
  absl::Status lent() const;
  int64_t received_bytes() const;  // since the last Connect
  int64_t bucket() const { return bucket_.load(std::memory_order_relaxed); }

  // Cancels, waits for the running job, drops the rest and gives everything back.
  void Stop();

 private:
  // What the thread is at, as far as it is watched.
  struct Watched {
    enum class Counts : uint8_t { kCalledOff, kOvertaken, kAtOnce };
    uint64_t job = 0;  // 0: nothing
    const char* what = "";
    absl::Duration limit;
    Counts counts = Counts::kCalledOff;  // when the limit begins
  };
  class AtWork;  // for as long as it lives
  struct Work {  // the receiver's thread only
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<const Plan> wanted;  // for which there was no room
    std::unique_ptr<Buffer> memory;      // the staging image, or the ring
    ClientEvents events;                 // of the attached engine
    uint64_t long_jobs = 0;
    std::unique_ptr<Attachment> attachment;  // last, so that its copies end before the memory they read goes
  };

  Watched LongJob(const char* what);
  PlanResult UseCatalog(AnnouncedCatalog catalog);
  PlanResult MakeRoom(std::shared_ptr<const Plan> plan);
  absl::StatusOr<AttachInfo> AttachNow(AttachSpec spec);
  absl::Status ConnectNow(uint64_t job, const SessionSpec& session);
  sink::Received ReceiveNow(uint64_t job, const LayerCalls& layers);
  sink::Received ReceiveThroughWindow(uint64_t job, const ReceiveContext& context, const LayerCalls& layers);
  sink::ApplyDone ApplyNow(uint64_t job, const std::optional<EventHandle>& after);
  // Both before live memory is written.
  absl::Status AwaitEnginePaused(uint64_t job);
  absl::Status AwaitPause(const std::optional<EventHandle>& after, const std::function<absl::Status()>& called_off);
  absl::StatusOr<Hash128> VerifyNow(uint64_t job);
  absl::Status CheckUsable(const char* what) const;
  void NoteLent(const absl::Status& outcome);  // of what used the engine's memory

  uint64_t NextJob();
  bool IsNewest(uint64_t job) const;
  absl::Status CancelledStatus(uint64_t job) const;
  absl::Status DetachedStatus(uint64_t job) const;
  // Makes `transport` the session's, unless job was cancelled. The old one goes first.
  absl::Status AdoptTransport(uint64_t job, std::shared_ptr<Transport> transport);
  bool GoOnIn(const SessionSpec& session);  // true: it is open, and counts its bytes anew
  std::shared_ptr<Transport> transport() const;

  Backend* const backend_;
  const ReceiverOptions options_;
  Work work_;
  std::atomic<int64_t> bucket_{-1};
  LayerLoans loans_;

  mutable Mutex mu_;
  std::shared_ptr<Transport> transport_ ABSL_GUARDED_BY(mu_);
  std::string open_token_ ABSL_GUARDED_BY(mu_);       // of transport_ while it is connected and whole; else empty
  int64_t received_before_ ABSL_GUARDED_BY(mu_) = 0;  // by transport_, for earlier rounds
  uint64_t jobs_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t cancelled_through_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t detached_through_ ABSL_GUARDED_BY(mu_) = 0;
  Watched watched_ ABSL_GUARDED_BY(mu_);
  SeenRunning late_ ABSL_GUARDED_BY(mu_);
  absl::Status cancelled_why_ ABSL_GUARDED_BY(mu_);
  absl::Status lent_ ABSL_GUARDED_BY(mu_);
  // Of the newest Receive.
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<EventHandle> paused_after_ ABSL_GUARDED_BY(mu_);
  CondVar changed_;  // paused, or cancelled

  SerialThread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_RECEIVER_H_
