// The sink's mind: one version at a time from begin to applied. (now, event) -> actions, nothing else.
//
// Pure: no clock, no I/O, no threads. The shell (sink_controller) feeds it from one thread and carries the actions out
// in order. What it tells the coordinator is said in the coordinator's own vocabulary (core/events.h, member 0), so a
// simulator can wire the two minds together.
//
//   kIdle -> kConnect -> kReceive -> kStaged -> kPause -> kApply -> kIdle              staged
//   kIdle -> kConnect [-> kPause] -> kReceive -> kStaged -> kIdle                      in_place: pause asked at begin
//   any   -> kCancel -> kIdle            while the receiver still winds down; nothing new starts before it answered
//
// Rules it keeps (proto/README.md): the engine is told `applied` only for bytes that were verified and committed; a
// failure after the first byte of live memory was written is TORN, and only a complete version ends that; messages of
// an old epoch change nothing; every wait it starts has a deadline.
#ifndef WSYNC_SERVER_ROLLOUT_SINK_STATE_H_
#define WSYNC_SERVER_ROLLOUT_SINK_STATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/core/modes.h"

namespace wsync {

struct SinkOptions {
  SinkMode mode = SinkMode::kStaged;
  // The coordinator gives up earlier (apply_timeout_ms); this bounds a sink whose coordinator is gone.
  absl::Duration pause_timeout = absl::Seconds(30);
  // An engine that attached opens its update stream at once; one that crashed in between never does.
  absl::Duration open_timeout = absl::Seconds(10);
};

namespace sink {

// ---- events: what happened

struct Linked {};  // welcomed by the coordinator: epochs start anew, and it knows `serving` from the join
struct Unlinked {
  std::string reason;
};
struct CatalogChanging {};  // a catalog arrived and its plan is being made
struct CatalogGone {};
struct PlanReady {
  absl::Status status;  // not OK: why this sink cannot take part
  Hash128 plan_hash;
  bool changed = true;  // false: the plan, and with it what is staged, is the same as before
};
struct EngineAttached {
  std::string engine;  // as people know it: "vllm 0.11 (pid 4711)"
};
struct EngineOpened {};
struct EnginePaused {
  uint64_t version = 0;
};
struct EngineLost {
  std::string reason;
};
struct EngineRefused {  // it wanted to attach and could not
  std::string engine;
  std::string reason;
};
struct Begin {
  uint64_t epoch = 0;
  uint64_t version = 0;
  Hash128 plan_hash;
  std::string session;  // secret
  int32_t rank = 0;
  int32_t world = 0;
  std::string data_address;
  bool wide = false;
};
struct Commit {
  uint64_t epoch = 0;
  uint64_t version = 0;
  Hash128 digest;
};
struct Abort {
  uint64_t epoch = 0;
  uint64_t version = 0;
  absl::Status status;
};
// Answers of the receiver, one to each Connect, Receive and Apply action, also after a Cancel.
struct Connected {
  absl::Status status;
};
struct Received {
  absl::Status status;
  Hash128 digest;
  StageTimings timings;
  int64_t bucket = -1;  // that failed; -1: none in particular
  bool wrote = false;   // in_place: live memory was touched
};
struct ApplyDone {
  absl::Status status;
  absl::Duration apply;
  bool wrote = true;  // live memory may have been touched
};
struct Stop {};
struct Tick {};

// ---- actions: what to do about it

struct Report {
  wsync::Event message;  // ReadyChanged, Staged, Applied or Failed, for the coordinator
};
struct Connect {
  Begin begin;
};
struct Receive {
  uint64_t version = 0;
};
struct WriteLive {  // in place: the engine has paused, and what Receive brings may be written to its memory
  uint64_t version = 0;
};
struct Apply {
  uint64_t version = 0;
};
struct Cancel {
  absl::Status why;  // what runs of Connect or Receive ends now
};
struct TellPrepare {
  uint64_t version = 0;
  bool in_place = false;
};
struct TellApply {
  uint64_t version = 0;
};
struct TellApplied {
  uint64_t version = 0;
  Hash128 digest;
  StageTimings timings;
};
struct TellTorn {
  uint64_t version = 0;
  std::string reason;
};
struct TellCancelled {
  uint64_t version = 0;
  std::string reason;
};
struct Detach {
  absl::Status why;  // for the engine; the state has let it go already
};

using Event =
    std::variant<Linked, Unlinked, CatalogChanging, CatalogGone, PlanReady, EngineAttached, EngineOpened, EnginePaused,
                 EngineLost, EngineRefused, Begin, Commit, Abort, Connected, Received, ApplyDone, Stop, Tick>;
using Action = std::variant<Report, Connect, Receive, WriteLive, Apply, Cancel, TellPrepare, TellApply, TellApplied,
                            TellTorn, TellCancelled, Detach>;
using Actions = std::vector<Action>;

}  // namespace sink

class SinkState {
 public:
  explicit SinkState(SinkOptions options);

  sink::Actions Step(absl::Time now, const sink::Event& event);

  absl::Time NextDeadline() const;  // when a Tick is due
  MemberPhase phase() const;
  uint64_t epoch() const { return round_.epoch; }      // of the running round; 0: idle
  uint64_t version() const { return round_.version; }  // of the running round
  ServedVersion serving() const { return serving_; }
  bool torn() const { return torn_; }
  ServedVersion held() const { return held_; }  // whole and committed in the staging copy
  bool busy() const { return state_ != State::kIdle; }
  std::string not_ready() const;  // why the sink cannot take part; empty: it can

 private:
  enum class State : uint8_t { kIdle, kConnect, kReceive, kStaged, kPause, kApply, kCancel };
  enum class PlanState : uint8_t { kNone, kMaking, kBad, kGood };
  struct Round {
    uint64_t epoch = 0;  // 0: a committed copy is applied again, without the coordinator
    uint64_t version = 0;
    Hash128 digest;
    StageTimings timings;
    bool orphaned = false;   // nobody waits for its end any more: what comes of it is said by Ready
    absl::Status cancelled;  // why, in kCancel
  };
  struct Engine {
    std::string name;
    bool opened = false;
    bool offered = false;  // had its chance to take what is held already
    absl::Time open_by;
  };

  void On(absl::Time now, const sink::Linked&);
  void On(absl::Time now, const sink::Unlinked& event);
  void On(absl::Time now, const sink::CatalogChanging&);
  void On(absl::Time now, const sink::CatalogGone&);
  void On(absl::Time now, const sink::PlanReady& event);
  void On(absl::Time now, const sink::EngineAttached& event);
  void On(absl::Time now, const sink::EngineOpened&);
  void On(absl::Time now, const sink::EnginePaused& event);
  void On(absl::Time now, const sink::EngineLost& event);
  void On(absl::Time now, const sink::EngineRefused& event);
  void On(absl::Time now, const sink::Begin& event);
  void On(absl::Time now, const sink::Commit& event);
  void On(absl::Time now, const sink::Abort& event);
  void On(absl::Time now, const sink::Connected& event);
  void On(absl::Time now, const sink::Received& event);
  void On(absl::Time now, const sink::ApplyDone& event);
  void On(absl::Time now, const sink::Stop&);
  void On(absl::Time now, const sink::Tick&);

  void Decline(const sink::Begin& begin, const std::string& why);
  void StartRound(absl::Time now, const sink::Begin& begin);
  void StartLocalApplyIfDue(absl::Time now);
  void AskPause();
  void StartReceive();
  void Serve(absl::Time now);
  void Fail(absl::Time now, const absl::Status& why, bool torn, int64_t bucket = -1);
  void Drop(absl::Time now, const absl::Status& why);
  void EndRound(absl::Time now);
  void MakeTorn(const absl::Status& why);
  void ReleaseEngine(const absl::Status& why);
  void ReportFailed(uint64_t epoch, uint64_t version, const absl::Status& why, bool torn, int64_t bucket);
  void ReportFailedIn(MemberPhase phase, uint64_t epoch, uint64_t version, const absl::Status& why, bool torn,
                      int64_t bucket);
  void ReportReadyIfChanged();
  event::ReadyChanged Facts() const;
  std::string NoEngine() const;
  bool WantsPause() const;
  // In place: the first buckets come into the ring, and the engine has not paused yet.
  bool ReceivesUnpaused() const { return in_place() && state_ == State::kReceive && paused_ != round_.version; }
  bool IsRound(uint64_t epoch, uint64_t version) const;
  bool in_place() const { return options_.mode == SinkMode::kInPlace; }
  template <typename T>
  void Do(T action) {
    actions_.emplace_back(std::move(action));
  }

  const SinkOptions options_;
  sink::Actions actions_;  // of the running Step

  bool linked_ = false;
  bool stopping_ = false;
  PlanState plan_ = PlanState::kNone;
  absl::Status plan_status_;
  Hash128 plan_hash_;
  std::optional<Engine> engine_;
  std::string why_no_engine_;  // what became of the last one; empty: there was none
  ServedVersion serving_;      // what the engine's memory holds
  bool torn_ = false;
  ServedVersion held_;  // whole and committed in the staging copy; 0: none

  State state_ = State::kIdle;
  Round round_;
  uint64_t last_epoch_ = 0;                  // highest seen on this link
  std::optional<sink::Begin> next_begin_;    // waits for what winds down
  std::optional<event::ReadyChanged> sent_;  // what the coordinator believes

  // At most one pause request is open, and another is made only once it was answered: a late answer can then never be
  // taken for the answer to a later request for the same version, which the engine would not be paused for.
  std::optional<uint64_t> asked_;
  absl::Status released_;  // not OK: the open request is void, and the engine hears so when it answers
  std::optional<uint64_t> paused_;
  absl::Time pause_deadline_;
  absl::Time paused_at_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_SINK_STATE_H_
