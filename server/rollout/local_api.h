// What the engine's side may ask of the agent, without gRPC: the service translates calls into this, the controller
// implements it.
//
// Any thread, never blocks; every `done` is called exactly once, on the controller's thread, and should not block.
#ifndef WSYNC_SERVER_ROLLOUT_LOCAL_API_H_
#define WSYNC_SERVER_ROLLOUT_LOCAL_API_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/rollout/attachment.h"
#include "server/rollout/receiver.h"
#include "server/rollout/sink_state.h"

namespace wsync {

// Who waits, and for how long.
struct Caller {
  absl::Time deadline;
  std::shared_ptr<std::atomic<bool>> gone;  // set when nobody waits for the answer any more
};

struct Attached {
  std::string attachment_id;
  Hash128 plan_hash;
  int64_t bytes_per_version = 0;
};

// The agent's end of an Updates call.
class EngineStream {
 public:
  virtual ~EngineStream() = default;
  virtual void Prepare(const sink::TellPrepare& event) = 0;
  virtual void LayerComplete(uint64_t version, const LayerReady& layer) = 0;
  virtual void WantLayer(uint64_t version, const LayerWanted& layer) = 0;
  virtual void Apply(const sink::TellApply& event) = 0;
  virtual void Applied(const sink::TellApplied& event) = 0;
  virtual void Torn(const sink::TellTorn& event) = 0;
  virtual void Cancelled(const sink::TellCancelled& event) = 0;
  // The controller has dealt with what the engine said last: only now is its next message read. Once for each call of
  // OpenUpdates, EnginePaused and EngineAnswers.
  virtual void Heard() = 0;
  // Ends the call, after what was sent before. Idempotent; nothing is sent after it.
  virtual void Finish(const absl::Status& status) = 0;
};

class LocalApi {
 public:
  virtual ~LocalApi() = default;
  // The current plan, waited for until the caller's deadline; DEADLINE_EXCEEDED says what is missing.
  virtual void AwaitPlan(Caller caller, std::function<void(absl::StatusOr<std::shared_ptr<const Plan>>)> done) = 0;
  // ALREADY_EXISTS names the engine that is attached.
  virtual void Attach(Caller caller, AttachSpec spec, std::function<void(absl::StatusOr<Attached>)> done) = 0;
  virtual void Detach(std::string attachment_id, std::function<void(absl::Status)> done) = 0;

  // The controller ends the stream when the attachment is gone, also at once: NOT_FOUND.
  virtual void OpenUpdates(std::string attachment_id, std::shared_ptr<EngineStream> stream) = 0;
  // `after`: the engine's stream reads the weights up to here; none: it has stopped reading. An event that the agent's
  // device cannot take ends the stream with Memory::CheckEvent's error.
  virtual void EnginePaused(std::shared_ptr<EngineStream> stream, uint64_t version,
                            std::optional<EventHandle> after) = 0;
  // Answers to LayerWanted.
  virtual void EngineAnswers(std::shared_ptr<EngineStream> stream, LayerAnswer answer) = 0;
  // The call broke, or the engine spoke nonsense: it is detached, and the stream ends with `status`.
  virtual void EngineGone(std::shared_ptr<EngineStream> stream, absl::Status status) = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_LOCAL_API_H_
