// The queue, the shell around the coordinator, the trainer, and what goes wrong.
#include "tests/core/simulation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/core/simulation_world.h"

namespace wsync::sim {
namespace {

constexpr absl::Duration kConvergeIn = absl::Seconds(240);  // the longest backoff, two publishes that time out, slack
constexpr absl::Duration kTrainersPatience = absl::Seconds(3);  // with an agent that does not answer

}  // namespace

Counts& Counts::operator+=(const Counts& other) {
  steps += other.steps;
  publishes += other.publishes;
  commits += other.commits;
  failures += other.failures;
  repeats += other.repeats;
  restarts += other.restarts;
  catch_ups += other.catch_ups;
  left_out += other.left_out;
  torn += other.torn;
  lost += other.lost;
  coordinator_lives += other.coordinator_lives;
  kept_sessions += other.kept_sessions;
  stale_messages += other.stale_messages;
  repeated_messages += other.repeated_messages;
  hang_ups += other.hang_ups;
  engines_lost += other.engines_lost;
  staged_engines += other.staged_engines;
  declined += other.declined;
  fenced += other.fenced;
  cost += other.cost;
  return *this;
}

uint64_t Random::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

absl::Duration Random::Between(absl::Duration low, absl::Duration high) {
  return low + absl::Nanoseconds(Below(absl::ToInt64Nanoseconds(high - low) + 1));
}

Result Simulate(const Options& options) { return World(options).Run(); }

World::World(const Options& options) : random(options.seed), options_(options) {
  Configure();
  checker_.emplace(coordinator_options_, coordinator_options_.stage_timeout + absl::Milliseconds(20), counts_);
}

void World::Configure() {
  const int replicas = (options_.liar ? 3 : 1) + static_cast<int>(random.Below(4));
  const int honest = replicas - (options_.liar ? 1 : 0);
  coordinator_options_.quorum = random.Chance(0.35) ? 1 + static_cast<int32_t>(random.Below(honest)) : 0;
  coordinator_options_.min_replicas = static_cast<int32_t>(random.Below(std::min(replicas, 2) + 1));
  coordinator_options_.source_retains = random.Chance(0.8);
  coordinator_options_.event_history = 8;
  coordinator_options_.new_session_token = [this] { return absl::StrCat("session-", ++tokens_); };
  if (random.Chance(0.7)) {  // else a data plane that knows nothing of its ranks
    coordinator_options_.peers = [this](uint64_t epoch) { return std::optional(SeenBySource(epoch)); };
  }
  plan_.wire_bytes = 1000000;  // 20 ms at the least rate
  fault_every_s_ = random.Chance(0.1) ? 1e9 : random.Chance(0.5) ? 2 : 0.3;
  laggy_ = random.Chance(0.3);
  for (int replica = 0; replica < replicas; ++replica) {
    const int32_t size = random.Chance(0.3) ? 2 : 1;
    for (int32_t rank = 0; rank < size; ++rank) {
      auto sink = std::make_unique<Sink>();
      sink->world = this;
      sink->name = absl::StrCat("sink-", replica, "-", rank);
      sink->replica = absl::StrCat("replica-", replica);
      sink->rank = rank;
      sink->replica_size = size;
      sink->in_place = random.Chance(0.3);
      sinks_.push_back(std::move(sink));
    }
  }
  if (options_.liar) ConfigureLiar();
}

// One of at least three replicas, so that there is somebody to go on with, and more who are right than who are not.
void World::ConfigureLiar() {
  Sink& liar = *sinks_[random.Below(sinks_.size())];
  liar.lie = static_cast<Sink::Lie>(1 + random.Below(Sink::kLies));
  // Where nobody sees its stream, who breaks off in silence is one who stalls.
  if (liar.lie == Sink::Lie::kBreaksOff && !coordinator_options_.peers) liar.lie = Sink::Lie::kNeverStages;
  liar_ = &liar;
  laggy_ = false;
  quiet_ = random.Chance(0.5);
  fault_every_s_ = quiet_ ? 1e9 : 0.5;
}

bool World::OfLiar(const Sink& sink) const { return liar_ != nullptr && sink.replica == liar_->replica; }

std::vector<PeerProgress> World::SeenBySource(uint64_t epoch) const {
  return session_ != nullptr && session_->epoch == epoch ? session_->peers : std::vector<PeerProgress>();
}

// ---- the queue

void World::At(absl::Duration delay, std::function<void()> what) {
  queue_.push_back({now + std::max(delay, absl::ZeroDuration()), ++order_, std::move(what)});
  std::push_heap(queue_.begin(), queue_.end());
}

template <typename Done>
bool World::RunUntil(absl::Time limit, Done done) {
  while (!queue_.empty() && checker_->violation().empty() && now < limit) {
    if (done()) return true;
    std::pop_heap(queue_.begin(), queue_.end());
    Item item = std::move(queue_.back());
    queue_.pop_back();
    now = std::max(now, item.when);
    item.what();
  }
  return done();
}

absl::Duration World::Delay() {
  if (laggy_ && random.Chance(0.05)) return random.Between(absl::Milliseconds(10), absl::Milliseconds(700));
  return random.Between(absl::Microseconds(50), absl::Milliseconds(2));
}

void World::AddNote(const std::string& text) {
  absl::StrAppendFormat(&history_, "%11.6f %s\n", absl::ToDoubleSeconds(now - absl::UnixEpoch()), text);
}

Result World::Run() {
  StartCoordinator();
  for (auto& sink : sinks_) sink->Start();
  Register(true);
  PlanPublish(absl::Milliseconds(300));
  PlanFault();
  const absl::Time limit = now + options_.publishes * absl::Seconds(120);
  if (!RunUntil(limit, [this] { return answered_ >= options_.publishes; })) {
    checker_->Violate(absl::StrCat("only ", answered_, " publishes were answered"));
  }
  Heal();
  if (!RunUntil(now + kConvergeIn, [this] { return Converged(); })) {
    const StatusSnapshot status = coordinator_->Snapshot(now);
    checker_->Violate(absl::StrCat("does not converge after the faults stopped: ", status.reason));
  }
  return {checker_->violation(), std::move(history_), fingerprint_, counts_};
}

bool World::Converged() {
  if (awaited_.has_value() || publish_on_ || checker_->latest().version == 0) return false;
  for (const auto& sink : sinks_) {
    if (OfLiar(*sink)) continue;
    if (sink->serving != checker_->latest() || sink->torn) return false;
  }
  return liar_ != nullptr || coordinator_->Snapshot(now).state == SyncState::kInSync;
}

// Nobody is fenced for what another one did; and who did it costs two versions, not one after the other.
void World::CheckFences(const action::PublishDone& done) {
  if (liar_ == nullptr) return;
  for (const MemberStatus& member : coordinator_->Snapshot(now).members) {
    if (member.state != "fenced") continue;
    if (member.info.name != liar_->name)
      checker_->Violate(absl::StrCat(member.info.name, " is fenced: ", member.last_error));
    counts_.fenced += answered_ + 1 == options_.publishes;
  }
  const bool held_up = now - asked_at_ > coordinator_options_.apply_timeout / 2;
  if (!quiet_ || (done.status.ok() && !held_up)) return;
  ++counts_.cost;
  if (++cost_ > Fences::kLostVersions) {
    checker_->Violate(absl::StrCat("another publish is lost to ", liar_->name, ", lie ", static_cast<int>(liar_->lie),
                                   ": ", done.status.ToString()));
  }
}

// ---- the shell

void World::StartCoordinator() {
  coordinator_ = std::make_unique<Coordinator>(coordinator_options_, now);
  agent_.Kill();
  tick_at_ = absl::InfiniteFuture();
  checker_->CoordinatorStarts();
}

void World::InAgent(std::function<void()> what) { agent_.Do(std::move(what)); }

void World::Feed(Event event) {
  InAgent([this, event = std::move(event)] { Step(event); });
}

void World::Step(const Event& event) {
  Note([&] { return Brief(event); });
  checker_->Retained(retained_);
  checker_->Before(now, event);
  const Actions actions = coordinator_->Step(now, event);
  ++counts_.steps;
  fingerprint_ = (fingerprint_ ^ (event.index() + 31 * actions.size() + absl::ToUnixNanos(now))) * 0x100000001b3;
  for (const Action& action : actions) Note([&] { return absl::StrCat("    ", Brief(action)); });
  checker_->After(now, actions);
  CheckTiming();
  for (const Action& action : actions) {
    std::visit([this](const auto& what) { Carry(what); }, action);
  }
  ArmTick();
}

// A step leaves nothing undone that was due, and nothing is due before the promised time.
void World::CheckTiming() {
  if (coordinator_->NextDeadline() <= now) checker_->Violate("the next deadline is not in the future");
  if (random.Chance(0.03)) {
    const absl::Duration soon = random.Between(absl::ZeroDuration(), absl::Seconds(1));
    At(soon, [this, life = agent_.life()] {
      if (life != agent_.life() || agent_.stopped() || coordinator_->NextDeadline() <= now) return;
      if (!coordinator_->Step(now, event::Tick{}).empty()) checker_->Violate("a tick before the next deadline acts");
    });
  }
  if (random.Chance(0.01) && coordinator_->Snapshot(now).reason.empty()) checker_->Violate("a status without a reason");
}

void World::ArmTick() {
  const absl::Time next = coordinator_->NextDeadline();
  if (next >= tick_at_ || next == absl::InfiniteFuture()) return;
  tick_at_ = next;
  At(next - now + random.Between(absl::ZeroDuration(), absl::Milliseconds(1)), [this, life = agent_.life(), next] {
    InAgent([this, life, next] {
      if (life != agent_.life() || tick_at_ != next) return;
      tick_at_ = absl::InfiniteFuture();
      if (coordinator_->NextDeadline() <= now) return Step(event::Tick{});
      ArmTick();
    });
  });
}

MemberId World::OpenStream(Sink* sink) {
  streams_[++last_stream_] = sink;
  return last_stream_;
}

void World::ToSink(MemberId member, std::function<void(Sink&)> what) {
  Sink* sink = streams_.at(member);
  if (sink->stream != member || sink->cut) return;
  sink->down = std::max(sink->down, now + Delay());
  sink->After(sink->down - now, [sink, member, what = std::move(what)] {
    if (sink->stream == member && !sink->cut) what(*sink);
  });
}

void World::Carry(const action::SendCatalog& catalog) {
  const std::optional<Hash128> plan = registered_ ? std::optional(plan_.plan_hash) : std::nullopt;
  ToSink(catalog.member, [plan](Sink& sink) { sink.GotCatalog(plan); });
}
void World::Carry(const action::Refuse& refuse) {
  ToSink(refuse.member, [retry = refuse.retry](Sink& sink) { sink.Refused(retry); });
}
void World::Carry(const action::SendBegin& begin) {
  ToSink(begin.member, [begin](Sink& sink) { sink.Begin(begin); });
}
void World::Carry(const action::SendCommit& commit) {
  ToSink(commit.member, [commit](Sink& sink) { sink.Commit(commit); });
}
void World::Carry(const action::SendAbort& abort) {
  ToSink(abort.member, [abort](Sink& sink) { sink.Abort(abort); });
}
void World::Carry(const action::Disconnect& disconnect) {
  ToSink(disconnect.member, [](Sink& sink) { sink.StreamEnded(); });
}
void World::Carry(const action::Log& log) {
  if (log.text.empty()) checker_->Violate("an empty log line");
}

// ---- the trainer

void World::Register(bool other_plan) {
  if (other_plan) plan_.plan_hash = plan_.catalog_fingerprint = {random.Next(), random.Next()};
  registered_ = true;
  encoded_ = retained_ = {};
  Feed(event::CatalogRegistered{plan_});
}

void World::Unregister() {
  registered_ = false;
  Feed(event::CatalogGone{"the trainer process died"});
}

void World::PlanPublish(absl::Duration think) {
  At(think, [this, life = agent_.life()] {
    if (life != agent_.life() || !publish_on_) return;
    InAgent([this] { Publish(); });
  });
}

// Mostly the next version; sometimes one again, with the same content or another, or an old one.
void World::Publish() {
  if (awaited_.has_value()) return;
  uint64_t version = version_ + 1;
  bool new_content = true;
  if (quiet_) {
    // The plainest trainer there is.
  } else if (faults_ && version_ > former_versions_ && random.Chance(last_failed_ ? 0.7 : 0.1)) {
    version = version_;
    new_content = random.Chance(0.3);
  } else if (faults_ && version_ > former_versions_ + 3 && random.Chance(0.03)) {
    version = version_ - 2;
  }
  version_ = std::max(version_, version);
  if (new_content) content_ = {random.Next(), random.Next()};
  checker_->Content(version, content_);
  awaited_ = version;
  asked_at_ = now;
  released_ = false;
  Step(event::Publish{version});
  if (faults_ && random.Chance(0.03) && awaited_ == version) Step(event::Publish{version});
  if (faults_ && !quiet_ && random.Chance(0.02)) {
    At(Delay(), [this, version] {  // on an agent that can hear it: see proto/README.md
      if (awaited_ == version && !agent_.stopped()) HangUp();
    });
  }
}

// The trainer gives up a version that is not released, and trains on. The agent hears of it when it can.
void World::HangUp() {
  if (!awaited_.has_value() || released_) return;
  Note([&] { return absl::StrCat("the trainer hangs up on version ", *awaited_, " and changes its weights"); });
  content_ = {random.Next(), random.Next()};
  checker_->Content(*awaited_, content_);
  ++counts_.hang_ups;
  Feed(event::CallersGone{*awaited_});
}

void World::Carry(const action::PublishReleased& released) { released_ |= released.version == awaited_; }

void World::Carry(const action::PublishDone& done) {
  if (done.version != awaited_) return;
  CheckFences(done);
  awaited_.reset();
  ++answered_;
  last_failed_ = !done.status.ok();
  // At the end one success is enough where the source can bring the others up to it by itself.
  if (!faults_ && done.status.ok() && coordinator_options_.source_retains) publish_on_ = false;
  if (!faults_ && done.status.ok()) {
    const auto current = [this](const auto& sink) { return OfLiar(*sink) || sink->serving == checker_->latest(); };
    if (std::all_of(sinks_.begin(), sinks_.end(), current)) publish_on_ = false;
  }
  PlanPublish(random.Between(absl::Milliseconds(1), faults_ ? absl::Milliseconds(800) : absl::Seconds(4)));
}

// ---- faults

void World::PlanFault() {
  if (fault_every_s_ > 1e6) return;
  At(random.Between(absl::ZeroDuration(), absl::Seconds(2 * fault_every_s_)), [this] {
    if (!faults_) return;
    if (random.Chance(0.8)) {
      SinkFault(*sinks_[random.Below(sinks_.size())]);
    } else {
      AgentFault();
    }
    PlanFault();
  });
}

void World::SinkFault(Sink& sink) {
  if (liar_ != nullptr) return CrashHonestly(sink);
  const uint64_t kind = random.Below(16);
  Note([&] { return absl::StrCat("fault ", kind, " of ", sink.name); });
  if (!sink.running) return;
  if (kind < 2) {
    sink.Break(random.Chance(0.7));
    sink.Kill();
    sink.stream = 0;
    At(random.Between(absl::Milliseconds(50), absl::Seconds(5)), [&sink] {
      if (!sink.running) sink.Start();
    });
  } else if (kind == 2) {
    sink.process.Stop(*this, random.Between(absl::Milliseconds(200), absl::Seconds(8)));
  } else if (kind == 3) {
    sink.Break(random.Chance(0.6));
  } else if (kind == 4) {
    sink.Leave();
  } else if (kind == 5) {
    if (sink.attached) return sink.LoseEngine();
    sink.attached = true;
    sink.SayReady();
  } else if (kind < 8) {
    sink.attached = true;
    sink.SayReady();
  } else if (kind < 13) {
    sink.bad_luck = static_cast<int>(kind) - 7;
  } else {
    sink.bad_apply = static_cast<int>(kind) - 12;
  }
}

// What costs the others nothing, and is noticed at once.
void World::CrashHonestly(Sink& sink) {
  if (!sink.running || OfLiar(sink)) return;
  const uint64_t kind = random.Below(3);
  if (kind == 0) return sink.Leave();
  sink.Break(true);
  if (kind == 1) return;
  sink.Kill();
  sink.stream = 0;
  At(random.Between(absl::Milliseconds(50), absl::Seconds(5)), [&sink] {
    if (!sink.running) sink.Start();
  });
}

void World::AgentFault() {
  const uint64_t kind = random.Below(12);
  Note([&] { return absl::StrCat("fault ", kind, " of the trainer agent"); });
  const absl::Duration pause = random.Between(absl::Milliseconds(100), absl::Seconds(6));
  if (kind < 2) {
    if (agent_.stopped()) return;
    agent_.Stop(*this, pause);
    checker_->Paused(pause);
    At(kTrainersPatience, [this, stop = agent_.stops()] {
      if (agent_.stopped() && stop == agent_.stops()) HangUp();
    });
  } else if (kind < 4) {
    now += pause;  // the whole machine stood still
    checker_->Paused(pause);
  } else if (kind < 5) {
    RestartCoordinator();
  } else if (kind < 7) {
    if (registered_) InAgent([this] { Unregister(); });
    At(pause / 4, [this] {
      if (faults_ || !registered_) InAgent([this] { Register(random.Chance(0.5)); });
    });
  } else if (kind < 10) {
    lose_transport_ = true;
  } else {
    lose_version_ = true;
  }
}

// The agent dies with coordinator and source, and comes back with nothing; the trainer does not reuse a number of which
// it cannot know whether somebody serves it.
void World::RestartCoordinator() {
  if (session_ != nullptr && !session_->dead) EndSession("the source died");
  ++encode_work_;
  encoding_ = 0;
  encoded_ = retained_ = {};
  session_.reset();
  for (auto& sink : sinks_) sink->Break(false);
  for (auto& sink : sinks_) {
    sink->After(Delay(), [sink = sink.get(), stream = sink->stream] {
      if (stream != 0 && sink->stream == stream) sink->StreamEnded();
    });
  }
  StartCoordinator();
  awaited_.reset();
  last_failed_ = false;
  former_versions_ = version_;
  Register(false);
  PlanPublish(absl::Milliseconds(500));
}

void World::Heal() {
  Note([] { return "faults stop"; });
  // Whoever was unlucky twice; also while the last stall goes on.
  for (const int seconds : {0, 9, 30}) {
    if (liar_ == nullptr) At(absl::Seconds(seconds), [this] { Feed(event::Unfence{}); });
  }
  faults_ = lose_transport_ = lose_version_ = false;
  for (auto& sink : sinks_) {
    sink->bad_luck = sink->bad_apply = 0;
    sink->attached = true;
    if (!sink->running) sink->Start();
    sink->SayReady();
  }
  // Past every pause that is still going on.
  At(absl::Seconds(7), [this] {
    if (!registered_) Register(false);
  });
  PlanPublish(absl::Seconds(1));
}

}  // namespace wsync::sim
