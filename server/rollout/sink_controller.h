// The sink's one control thread: brings coordinator, engine and receiver together around the SinkState.
//
// What the others report is posted to the thread, becomes an event, and the state's actions are carried out in order;
// none of them blocks. LocalApi's methods may be called from any thread, everything else runs on the control thread.
#ifndef WSYNC_SERVER_ROLLOUT_SINK_CONTROLLER_H_
#define WSYNC_SERVER_ROLLOUT_SINK_CONTROLLER_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/rollout/local_api.h"
#include "server/rollout/member_client.h"
#include "server/rollout/receiver.h"
#include "server/rollout/serial_thread.h"
#include "server/rollout/sink_state.h"
#include "server/rpc/client_process.h"

namespace wsync {

struct SinkControllerOptions {
  SinkOptions sink;
  ReceiverOptions receiver;
  MemberClientOptions member;
};

class SinkController final : public LocalApi, private MemberDelegate {
 public:
  // `backend` must outlive it.
  SinkController(SinkControllerOptions options, Backend* backend);
  ~SinkController() override;

  void Start();  // dials the coordinator
  // Lets a running apply end, gives up what else runs, says goodbye to the coordinator and lets the engine go; all of
  // it within `grace` and a little. LocalApi still answers (UNAVAILABLE) until the destructor. Not on the thread.
  void Drain(absl::Duration grace);
  // One thread, a few times a second: whether its threads get through their work. See Turns, Receiver::Look.
  absl::Status Look(absl::Time now);

  void AwaitPlan(Caller caller, std::function<void(absl::StatusOr<std::shared_ptr<const Plan>>)> done) override;
  void Attach(Caller caller, AttachSpec spec, std::function<void(absl::StatusOr<Attached>)> done) override;
  void Detach(std::string attachment_id, std::function<void(absl::Status)> done) override;
  void OpenUpdates(std::string attachment_id, std::shared_ptr<EngineStream> stream) override;
  void EnginePaused(std::shared_ptr<EngineStream> stream, uint64_t version, std::optional<EventHandle> after) override;
  void EngineAnswers(std::shared_ptr<EngineStream> stream, LayerAnswer answer) override;
  void EngineGone(std::shared_ptr<EngineStream> stream, absl::Status status) override;

 private:
  using PlanDone = std::function<void(absl::StatusOr<std::shared_ptr<const Plan>>)>;
  using AttachDone = std::function<void(absl::StatusOr<Attached>)>;
  struct Waiter {
    Caller caller;
    PlanDone done;
  };
  struct Engine {  // attached, or about to be
    std::string name;
    std::string attachment_id;  // empty: still being checked
    // Its update stream's end mostly says the same sooner; but a child of it may hold that open. Null: another pid
    // namespace's.
    std::shared_ptr<const ClientProcess> process;
    absl::Time attached_at;
    absl::Time look_at;  // whether it lives
    int64_t bytes_per_version = 0;
    std::shared_ptr<EngineStream> stream;
    uint64_t paused = 0;  // the version that it paused for last, at this point of its stream
    std::optional<EventHandle> paused_at;
  };

  // MemberDelegate
  void Introduce(v1::Join* join) override;
  v1::Heartbeat MakeHeartbeat() override;
  void OnLinked() override;
  void OnUnlinked(const std::string& reason) override;
  void OnCatalog(absl::StatusOr<AnnouncedCatalog> catalog) override;
  void OnRoundMessage(const v1::CoordinatorMessage& message) override;

  void OnVerify(uint64_t id);
  absl::Status CannotVerify() const;
  void OnPlan(uint64_t catalog, const PlanResult& result);
  void Step(const sink::Event& event);
  void StepWithEngine(const sink::Event& event);  // of what used the engine's memory
  void Do(const sink::Report& action);
  void Do(const sink::Connect& action);
  void Do(const sink::Receive& action);
  void Do(const sink::WriteLive& action);
  void Do(const sink::Apply& action);
  void Do(const sink::Cancel& action);
  void Do(const sink::TellPrepare& action);
  void Do(const sink::TellApply& action);
  void Do(const sink::TellApplied& action);
  void LogApplied(const sink::TellApplied& action) const;
  void Do(const sink::TellTorn& action);
  void Do(const sink::TellCancelled& action);
  void Do(const sink::Detach& action);
  void OnLayer(uint64_t version, const LayerReady& layer);
  void OnLayerWanted(uint64_t version, const LayerWanted& layer);
  // The engine's stream, while it is at `version` and nobody has called that off; else null.
  EngineStream* ReceivingStream(uint64_t version) const;
  std::optional<EventHandle> PausedAt(uint64_t version) const;

  void WaitForPlan(Caller caller, PlanDone done);
  void ResolveWaiters();
  void ExpireWaiters(absl::Time now);
  std::string WhyNoPlan() const;

  void StartAttach(const Caller& caller, AttachSpec spec, AttachDone done);
  void FinishAttach(const Caller& caller, const absl::StatusOr<AttachInfo>& info, const AttachDone& done);
  absl::Status EngineSlotFree() const;
  // Lets an engine go that attached and did not come for its updates, for the sake of one that is here.
  void MakeWayForEngine();
  // Lets it go if its process has ended; when to look again.
  void WatchEngine();
  absl::Time NextLook() const;
  bool IsAttached(const std::string& attachment_id) const;
  absl::Status WhyNotAttached(const std::string& attachment_id) const;
  EngineStream* engine_stream() const { return engine_ ? engine_->stream.get() : nullptr; }
  // Ends the engine's stream with `status` and forgets it; the state hears of it unless it said so itself.
  void LetEngineGo(const absl::Status& status, bool tell_state = true);
  // One that cut its memory fails every version there is, and would fail the others' under policy `all`.
  void LetEngineGoIfCut();

  absl::Time NextDeadline() const;
  void Tick();
  void Post(std::function<void()> job) { thread_->Post(std::move(job)); }
  // What the engine said on that stream.
  void PostHeard(const std::shared_ptr<EngineStream>& stream, std::function<void()> job);
  // Runs `job` on the thread and waits until it has called what it was given, or until the deadline.
  void RunAndWait(absl::Time deadline, std::function<void(std::function<void()> finished)> job);

  const SinkControllerOptions options_;
  const Memory& memory_;
  const std::shared_ptr<SerialThread> thread_;
  // On the thread only.
  SinkState state_;
  Receiver receiver_;
  MemberClient member_;
  std::shared_ptr<const Plan> plan_;  // null: none, or in the making
  absl::Status plan_status_;
  uint64_t catalogs_ = 0;      // announced so far: answers for older ones only count as changes
  bool plan_changed_ = false;  // since the state last heard of a plan
  absl::Time ask_for_room_at_ = absl::InfiniteFuture();  // again, after there was none for the plan
  std::vector<Waiter> waiters_;
  std::optional<Engine> engine_;
  struct {  // the last that was let go before it opened its update stream, where it will hear of it
    std::string attachment_id;
    absl::Status why;
  } untold_;
  int32_t group_ = 0;  // sinks that were ready when the last version was begun here
  bool draining_ = false;
  std::function<void()> on_idle_;  // Drain waits for the end of what runs
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_SINK_CONTROLLER_H_
