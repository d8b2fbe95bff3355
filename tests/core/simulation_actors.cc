// Sinks, and the source with its wire.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/core/simulation_world.h"

namespace wsync::sim {

constexpr absl::Duration kHeartbeat = absl::Seconds(1);

void Process::Stop(World& world, absl::Duration pause) {
  if (stopped_) return;
  stopped_ = true;
  ++stops_;
  world.At(pause, [this, life = life_] {
    if (life != life_) return;
    stopped_ = false;
    while (!waiting_.empty() && !stopped_ && life == life_) {
      const std::function<void()> what = std::move(waiting_.front());
      waiting_.pop_front();
      what();
    }
  });
}

// ---- sink: process and stream

void Sink::After(absl::Duration delay, std::function<void()> what) {
  world->At(delay, [this, life = process.life(), what = std::move(what)]() mutable {
    if (life == process.life()) process.Do(std::move(what));
  });
}

void Sink::AfterWork(absl::Duration delay, std::function<void()> what) {
  After(delay, [this, of_work = work, what = std::move(what)] {
    if (of_work == work) what();
  });
}

void Sink::Start() {
  running = true;
  ++pid;
  serving = {};
  group = 0;
  torn = false;
  Connect();
}

void Sink::Kill() {
  DropWork();
  running = false;
  process.Kill();
}

void Sink::Connect() {
  if (!running || stream != 0) return;
  stream = world->OpenStream(this);
  cut = false;
  up = down = world->now;
  MemberInfo info{name, replica, rank, replica_size, "host-" + name, pid, "host", "simulation", Claim()};
  info.group = group;
  info.incarnation = {1, static_cast<uint64_t>(pid)};
  Send(event::Joined{stream, info});
  Heartbeat(stream);
}

void Sink::Heartbeat(uint64_t of_stream) {
  if (stream != of_stream) return;
  constexpr MemberPhase kPhases[] = {MemberPhase::kIdle, MemberPhase::kIdle, MemberPhase::kReceive,
                                     MemberPhase::kStaged, MemberPhase::kApply};
  const uint64_t received = state == State::kIdle ? 0 : world->Received();
  Send(event::HeartbeatSeen{stream, epoch, version, kPhases[static_cast<int>(state)], received, 3});
  After(kHeartbeat, [this, of_stream] { Heartbeat(of_stream); });
}

void Sink::Send(Event event) {
  if (stream == 0 || cut) return;
  up = std::max(up, world->now + world->Delay());
  world->MaybeRepeat(up - world->now, event);
  world->At(up - world->now, [this, event = std::move(event)]() mutable { world->Feed(std::move(event)); });
}

// gRPC delivers once and in order. The fences do not count on it: an answer may come again, at once or when its round
// is long over; what is no answer (ready, heartbeat) at most twice in a row.
void World::MaybeRepeat(absl::Duration arrival, const Event& event) {
  if (!faults_ || !random.Chance(0.02) || std::holds_alternative<event::Joined>(event)) return;
  const bool answer = std::holds_alternative<event::Staged>(event) || std::holds_alternative<event::Applied>(event) ||
                      std::holds_alternative<event::Failed>(event);
  const absl::Duration later =
      answer && random.Chance(0.5) ? random.Between(absl::ZeroDuration(), absl::Seconds(3)) : absl::ZeroDuration();
  ++counts_.repeated_messages;
  At(arrival + later, [this, event] { Feed(event); });
}

// Both ends notice, or only the sink does, later, and the coordinator has only the silence.
void Sink::Break(bool coordinator_notices) {
  if (stream == 0) return;
  if (coordinator_notices) Send(event::Lost{stream, "connection reset"});
  cut = true;
  const absl::Duration unnoticed = coordinator_notices ? world->Delay() : absl::Seconds(4);
  After(unnoticed, [this, of_stream = stream] {
    if (stream == of_stream) StreamEnded();
  });
}

// As SinkState: what it worked on fails, and torn by it is only what a new engine does not have.
void Sink::LoseEngine() {
  attached = false;
  if (state != State::kIdle) {
    constexpr MemberPhase kPhases[] = {MemberPhase::kIdle, MemberPhase::kIdle, MemberPhase::kReceive,
                                       MemberPhase::kStaged, MemberPhase::kApply};
    const bool written = in_place ? state != State::kApplying : state == State::kApplying;
    const MemberPhase phase = kPhases[static_cast<int>(state)];
    world->CountEngineLost(phase);
    Send(event::Failed{stream, epoch, version, phase, absl::UnavailableError("engine gone"), written, -1});
    DropWork();
  }
  serving = {};
  torn = false;
  SayReady();
}

void Sink::Leave() {
  if (stream == 0) return;
  Send(event::Left{stream, "shutting down"});
  cut = true;
  StreamEnded();
}

// Without a coordinator nothing can be committed: what is not committed is given up, what is being applied goes on.
void Sink::StreamEnded() {
  stream = 0;
  plan.reset();
  if (state != State::kApplying) DropWork();
  After(world->random.Between(absl::Milliseconds(50), absl::Milliseconds(1500)), [this] { Connect(); });
}

void Sink::Refused(bool retry) {
  stream = 0;
  if (!retry) world->checker().Violate(absl::StrCat(name, " was refused for good"));
  After(world->random.Between(absl::Milliseconds(300), absl::Milliseconds(1500)), [this] { Connect(); });
}

void Sink::SayReady() {
  const bool ready = attached && plan.has_value() && state != State::kApplying;
  const std::string reason = ready ? "" : attached ? "still busy" : "no engine attached";
  Send(event::ReadyChanged{stream, ready, reason, plan.value_or(Hash128{}), "engine", Claim(), torn});
}

ServedVersion Sink::Claim() const {
  return lie == Lie::kServesTheLast ? ServedVersion{UINT64_MAX - 1, {6, 6}} : serving;
}

void Sink::GotCatalog(const std::optional<Hash128>& new_plan) {
  plan = new_plan;
  if (plan.has_value()) SayReady();
}

// ---- sink: one version

void Sink::Begin(const action::SendBegin& begin) {
  if (state != State::kIdle) {
    world->checker().Violate(absl::StrCat(name, " was asked into epoch ", begin.epoch, " while it works on ", epoch));
  }
  group = begin.group;
  if (!attached) {  // as SinkState::Decline: no work begins, and nothing is torn by it
    world->CountDeclined();
    const absl::Status why = absl::UnavailableError("no engine attached");
    return Send(event::Failed{stream, begin.epoch, begin.version, MemberPhase::kConnect, why, false, -1});
  }
  ++work;
  state = State::kReceiving;
  epoch = begin.epoch;
  version = begin.version;
  session = begin.session;
  session_rank = begin.rank;
  if (Lies()) return;
  if (bad_luck == 1) {
    AfterWork(absl::Milliseconds(4),
              [this] { Fail(MemberPhase::kReceive, absl::ResourceExhaustedError("no memory")); });
    bad_luck = 0;
  }
  AfterWork(world->random.Between(absl::Milliseconds(1), absl::Milliseconds(5)), [this] { world->JoinSession(this); });
}

bool Sink::Lies() {
  switch (lie) {
    case Lie::kNone:
    case Lie::kNeverStages:
    case Lie::kBreaksOff:
    case Lie::kNeverApplies:
    case Lie::kServesTheLast:
      return false;
    case Lie::kNeverConnects:
      return true;
    case Lie::kStagesOther:
      staged = {6, 6};
      Send(event::Staged{stream, epoch, version, staged, {}});
      return true;
    case Lie::kRefuses:
      Fail(MemberPhase::kReceive, absl::InternalError("it will not"));
      return true;
    case Lie::kCallsBroken:
      Fail(MemberPhase::kReceive, absl::UnavailableError("the stream broke"));
      return true;
  }
  return true;
}

void Sink::Fail(MemberPhase phase, const absl::Status& status) {
  const uint64_t failed_epoch = epoch;
  const uint64_t failed_version = version;
  const bool was_torn = torn;
  DropWork();
  Send(event::Failed{stream, failed_epoch, failed_version, phase, status, torn && !was_torn, 3});
}

void Sink::Received(const Hash128& digest) {
  if (lie == Lie::kNeverStages) return;
  if (lie == Lie::kBreaksOff) return world->BreakOff(this);
  world->ReceivedAll(this);
  staged = digest;
  const int luck = std::exchange(bad_luck, 0);
  if (luck == 2) return Fail(MemberPhase::kReceive, absl::DataLossError("bucket 3: digest mismatch"));
  if (luck == 3) staged.low ^= 1;
  state = State::kStaged;
  Send(event::Staged{stream, epoch, version, staged, {}});
}

void Sink::Commit(const action::SendCommit& commit) {
  if (state != State::kStaged || commit.epoch != epoch || commit.version != version) return;  // fenced
  if (commit.digest != staged)
    world->checker().Violate(absl::StrCat(name, " was told to commit what it does not have"));
  state = State::kApplying;
  const bool endless = bad_apply == 3;
  const absl::Duration time =
      endless ? absl::Seconds(40) : world->random.Between(absl::Milliseconds(1), absl::Milliseconds(20));
  AfterWork(time, [this] { Apply(); });
}

void Sink::Apply() {
  if (lie == Lie::kNeverApplies) {
    state = State::kIdle;  // as its heartbeats say
    epoch = version = 0;
    return;
  }
  const int luck = std::exchange(bad_apply, 0);
  if (luck == 1 || luck == 2) {
    torn |= luck == 2;
    const event::Failed failed{stream, epoch, version, MemberPhase::kApply, absl::InternalError("engine"), torn, -1};
    state = State::kIdle;
    epoch = version = 0;
    Send(failed);
    return SayReady();
  }
  const ServedVersion applied{version, staged};
  world->checker().Served(name, epoch, serving, applied);
  serving = applied;
  torn = false;
  Send(event::Applied{stream, epoch, version, staged, {}});
  state = State::kIdle;
  epoch = version = 0;
  SayReady();
}

void Sink::Abort(const action::SendAbort& abort) {
  if (abort.epoch != epoch) return;
  if (state == State::kApplying) return world->checker().Violate(name + " was told to abort what it applies");
  const bool was_torn = torn;
  DropWork();
  if (torn != was_torn) SayReady();
}

void Sink::DropWork() {
  ++work;
  if (in_place && state != State::kIdle) torn = true;
  const bool in_session = state == State::kReceiving;
  state = State::kIdle;
  epoch = version = 0;
  if (in_session) world->LeaveSession(this);
}

// ---- the wire

void World::JoinSession(Sink* sink) {
  if (session_ == nullptr || session_->token != sink->session || session_->dead) {
    return sink->AfterWork(Delay(),
                           [sink] { sink->Fail(MemberPhase::kConnect, absl::UnavailableError("no such session")); });
  }
  session_->joined.push_back(sink);
  session_->peers[sink->session_rank - 1] = {true, false, 1};
  StartSending();
}

// All ranks are there and the bytes are, too: each sink has them after a while.
void World::StartSending() {
  if (session_ == nullptr || session_->dead || encoded_.version != session_->version) return;
  if (static_cast<int32_t>(session_->joined.size()) + 1 != session_->world) return;
  if (std::exchange(lose_transport_, false)) {
    return SourceFails(absl::UnavailableError("connection reset by a receiver"), false);
  }
  for (Sink* sink : session_->joined) {
    if (sink->bad_luck == 5) continue;  // stalls, and nobody hears of it
    const absl::Duration time = random.Between(absl::Milliseconds(2), absl::Milliseconds(30));
    sink->AfterWork(sink->bad_luck == 4 ? 200 * time : time,
                    [sink, digest = encoded_.digest] { sink->Received(digest); });
  }
}

void World::ReceivedAll(Sink* sink) {
  if (session_ == nullptr || session_->token != sink->session || session_->dead) return;
  std::erase(session_->joined, sink);
  session_->peers[sink->session_rank - 1].moved_bytes = plan_.wire_bytes;
  if (++session_->received + 1 < session_->world) return;
  const event::SourceSent sent{session_->epoch, session_->version};
  InAgent([this, sent] { Step(sent); });
}

// A receiver is gone in the middle: often its peers and the source notice before the coordinator does; or nobody does.
void World::LeaveSession(Sink* sink) {
  if (session_ == nullptr || session_->dead) return;
  if (std::erase(session_->joined, sink) == 0 || !random.Chance(0.6)) return;
  session_->peers[sink->session_rank - 1].broke_off = true;
  if (random.Chance(0.5)) {
    SourceFails(absl::UnavailableError(sink->name + " is gone"), false);
  } else {
    EndSession(sink->name + " is gone");
  }
}

// The source notices, and its other sinks do; this one says nothing.
void World::BreakOff(Sink* sink) {
  if (session_ == nullptr || session_->dead || std::erase(session_->joined, sink) == 0) return;
  session_->peers[sink->session_rank - 1].broke_off = true;
  SourceFails(absl::UnavailableError(sink->name + " is gone"), false);
}

void World::EndSession(const std::string& why) {
  session_->dead = true;
  for (Sink* sink : std::exchange(session_->joined, {})) {
    // A broken session reaches all its ranks; a lost machine need not.
    const bool unnoticed = random.Chance(0.2) && liar_ == nullptr;
    if (sink->state != Sink::State::kReceiving || unnoticed) continue;
    sink->AfterWork(Delay(), [sink, why] { sink->Fail(MemberPhase::kReceive, absl::UnavailableError(why)); });
  }
}

void World::SourceFails(const absl::Status& status, bool version_lost) {
  const event::SourceFailed failed{session_->epoch, session_->version, status, version_lost};
  EndSession("the source ended the session");
  At(Delay(), [this, failed] { InAgent([this, failed] { Step(failed); }); });
}

// ---- the source

void World::Carry(const action::StartSource& start) {
  session_ = std::make_shared<Session>(Session{start.epoch, start.version, start.session, start.world});
  session_->peers.resize(start.world - 1);
  if (start.encode && encoding_ != start.version) {
    encoding_ = start.version;
    encoded_ = retained_ = {};
    Encode(start.epoch);
  }
  // A rank that does not come ends the connection phase.
  At(absl::Seconds(2), [this, session = session_] {
    const bool waits = static_cast<int32_t>(session->joined.size()) + session->received + 1 < session->world;
    const bool noticed = random.Chance(0.7) || liar_ != nullptr;  // those who wait for it have deadlines of their own
    if (session == session_ && !session->dead && waits && noticed) {
      SourceFails(absl::DeadlineExceededError("a rank did not come"), false);
    }
  });
}

void World::Encode(uint64_t epoch) {
  At(random.Between(absl::Milliseconds(2), absl::Milliseconds(40)),
     [this, work = ++encode_work_, epoch, read = content_] {
       InAgent([this, work, epoch, read] {
         if (work != encode_work_) return;
         if (std::exchange(lose_version_, false)) return SourceFails(absl::DataLossError("NaN in a weight"), true);
         encoded_ = {encoding_, read};
         encoding_ = 0;
         if (coordinator_options_.source_retains) retained_ = encoded_;
         Step(event::SourceReleased{encoded_.version, encoded_.digest, absl::Milliseconds(5), epoch});
         StartSending();
       });
     });
}

void World::Carry(const action::CancelSource& cancel) {
  if (session_ != nullptr && session_->epoch == cancel.epoch && !session_->dead) {
    EndSession(std::string(cancel.reason.message()));
  }
  if (!cancel.drop_version || cancel.epoch == check_epoch_) return;
  ++encode_work_;
  encoding_ = 0;
  encoded_ = retained_ = {};
}

void World::Carry(const action::CheckContent& check) {
  check_epoch_ = check.epoch;
  At(Delay(), [this, check, read = content_] {
    InAgent([this, check, read] { Step(event::ContentChecked{check.epoch, check.version, absl::OkStatus(), read}); });
  });
}

}  // namespace wsync::sim
