// What the simulation consists of: a queue of things to happen, the shell around the coordinator, sinks, a source with
// its data-plane sessions, and a trainer. simulation.cc holds queue, shell and faults, simulation_actors.cc
// the actors, simulation_history.cc the words of a history.
#ifndef WSYNC_TESTS_CORE_SIMULATION_WORLD_H_
#define WSYNC_TESTS_CORE_SIMULATION_WORLD_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "server/core/coordinator.h"
#include "server/core/fences.h"
#include "tests/core/simulation.h"
#include "tests/core/simulation_checker.h"

namespace wsync::sim {

// splitmix64: the same numbers on every platform.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  uint64_t Below(uint64_t limit) { return Next() % limit; }
  bool Chance(double probability) { return static_cast<double>(Next() >> 11) * 0x1p-53 < probability; }
  absl::Duration Between(absl::Duration low, absl::Duration high);

 private:
  uint64_t state_;
};

class World;

std::string Brief(const Event& event);
std::string Brief(const Action& action);

// A process that can be stopped: what it would do meanwhile it does when it goes on, in order.
class Process {
 public:
  void Do(std::function<void()> what) {
    if (stopped_) return waiting_.push_back(std::move(what));
    what();
  }
  void Stop(World& world, absl::Duration pause);
  void Kill() {  // what waits is lost
    ++life_;
    stopped_ = false;
    waiting_.clear();
  }
  bool stopped() const { return stopped_; }
  uint64_t stops() const { return stops_; }  // so far
  uint64_t life() const { return life_; }

 private:
  bool stopped_ = false;
  uint64_t stops_ = 0;
  uint64_t life_ = 0;
  std::deque<std::function<void()>> waiting_;
};

// A rollout agent. Its messages travel in order on its own stream; those of different sinks overtake each other.
struct Sink {
  enum class State : uint8_t { kIdle = 1, kReceiving, kStaged, kApplying };
  enum class Lie : uint8_t {
    kNone,
    kNeverConnects,  // to the data plane
    kNeverStages,
    kStagesOther,  // content, at once
    kRefuses,
    kCallsBroken,  // the session
    kBreaksOff,    // its stream, where the others complain
    kNeverApplies,
    kServesTheLast,  // version that there is
  };
  static constexpr uint64_t kLies = 8;
  World* world = nullptr;
  std::string name, replica;
  int32_t rank = 0, replica_size = 1;
  int64_t pid = 1;
  bool in_place = false;  // receives over the live weights: an abort tears them
  bool running = true;    // false: killed
  bool attached = true;   // an engine is
  Lie lie = Lie::kNone;
  Process process;
  // its stream
  MemberId stream = 0;  // 0: none
  bool cut = false;     // half-open: nothing arrives any more, in either direction
  absl::Time up, down;  // arrival of the last message sent each way
  // what it has
  ServedVersion serving;
  bool torn = false;
  std::optional<Hash128> plan;
  // the version it works on
  State state = State::kIdle;
  uint64_t epoch = 0, version = 0;
  std::string session;
  int32_t session_rank = 0;
  int32_t group = 0;
  uint64_t work = 0;  // counts begins and aborts: a step of earlier work does not happen
  Hash128 staged;
  int bad_luck = 0;  // the next receive: 1 fails, 2 is damaged and noticed, 3 is damaged unnoticed, 4 is slow, 5 stalls
  int bad_apply = 0;  // the next apply: 1 fails, 2 tears, 3 takes longer than allowed

  void Start();
  void Kill();
  void Connect();
  void Break(bool coordinator_notices);
  void LoseEngine();
  void Leave();
  void StreamEnded();
  void SayReady();
  void Heartbeat(uint64_t of_stream);
  void Send(Event event);
  void GotCatalog(const std::optional<Hash128>& new_plan);
  void Begin(const action::SendBegin& begin);
  void Commit(const action::SendCommit& commit);
  void Abort(const action::SendAbort& abort);
  void Refused(bool retry);
  bool Lies();  // in answer to a begin; true: that is all it does
  ServedVersion Claim() const;
  void Received(const Hash128& digest);
  void Fail(MemberPhase phase, const absl::Status& status);
  void Apply();
  void DropWork();
  // Later, in this life; a stopped process does it when it goes on.
  void After(absl::Duration delay, std::function<void()> what);
  // The same, unless the work at hand is given up before.
  void AfterWork(absl::Duration delay, std::function<void()> what);
};

// The source's end of one epoch, and the wire.
struct Session {
  uint64_t epoch = 0, version = 0;
  std::string token;
  int32_t world = 1;
  bool dead = false;
  std::vector<Sink*> joined;
  int32_t received = 0;
  std::vector<PeerProgress> peers;  // by rank
};

class World {
 public:
  explicit World(const Options& options);
  Result Run();

  // ---- for the actors
  void At(absl::Duration delay, std::function<void()> what);
  void Feed(Event event);  // to the coordinator; when its process runs again, if it is stopped
  template <typename Text>
  void Note(Text text) {
    if (options_.keep_history) AddNote(text());
  }
  absl::Duration Delay();  // of one message
  // What a sink says that it has of a version: anything, but for ranks that move together behind one that stops.
  uint64_t Received() { return liar_ != nullptr ? 0 : random.Below(1000); }
  void MaybeRepeat(absl::Duration arrival, const Event& event);  // a second time
  MemberId OpenStream(Sink* sink);
  void JoinSession(Sink* sink);
  void LeaveSession(Sink* sink);
  void ReceivedAll(Sink* sink);
  void BreakOff(Sink* sink);
  Checker& checker() { return *checker_; }
  Random random;
  absl::Time now = absl::UnixEpoch();

  void CountDeclined() { ++counts_.declined; }
  void CountEngineLost(MemberPhase phase) {
    ++counts_.engines_lost;
    counts_.staged_engines += phase == MemberPhase::kStaged;
  }

 private:
  struct Item {
    absl::Time when;
    uint64_t order;
    std::function<void()> what;
    bool operator<(const Item& other) const { return std::tie(when, order) > std::tie(other.when, other.order); }
  };
  void Configure();
  void ConfigureLiar();
  bool OfLiar(const Sink& sink) const;  // of its replica
  std::vector<PeerProgress> SeenBySource(uint64_t epoch) const;
  void CheckFences(const action::PublishDone& done);
  void AddNote(const std::string& text);
  template <typename Done>
  bool RunUntil(absl::Time limit, Done done);
  bool Converged();
  // ---- the shell around the coordinator
  void StartCoordinator();
  void InAgent(std::function<void()> what);  // in this life of the trainer agent, when its process runs
  void Step(const Event& event);
  void CheckTiming();
  void ArmTick();
  void ToSink(MemberId member, std::function<void(Sink&)> what);
  void Carry(const action::SendWelcome&) {}
  void Carry(const action::SendCatalog& catalog);
  void Carry(const action::Refuse& refuse);
  void Carry(const action::SendBegin& begin);
  void Carry(const action::SendCommit& commit);
  void Carry(const action::SendAbort& abort);
  void Carry(const action::Disconnect& disconnect);
  void Carry(const action::StartSource& start);
  void Carry(const action::CancelSource& cancel);
  void Carry(const action::CheckContent& check);
  void Carry(const action::PublishAccepted&) {}
  void Carry(const action::PublishReleased& released);
  void Carry(const action::PublishDone& done);
  void Carry(const action::Unfenced&) {}
  void Carry(const action::Log& log);
  // ---- source and trainer
  void Encode(uint64_t epoch);
  void StartSending();
  void EndSession(const std::string& why);
  void SourceFails(const absl::Status& status, bool version_lost);
  void Register(bool other_plan);
  void Unregister();
  void PlanPublish(absl::Duration think);
  void Publish();
  void HangUp();
  // ---- faults
  void PlanFault();
  void SinkFault(Sink& sink);
  void CrashHonestly(Sink& sink);
  void AgentFault();
  void RestartCoordinator();
  void Heal();

  Options options_;
  CoordinatorOptions coordinator_options_;
  Counts counts_;
  std::optional<Checker> checker_;
  std::unique_ptr<Coordinator> coordinator_;
  Process agent_;  // the trainer agent: coordinator and source
  absl::Time tick_at_ = absl::InfiniteFuture();
  std::vector<Item> queue_;
  uint64_t order_ = 0;
  uint64_t fingerprint_ = 0;
  std::string history_;
  std::vector<std::unique_ptr<Sink>> sinks_;
  std::map<MemberId, Sink*> streams_;
  MemberId last_stream_ = 0;
  bool faults_ = true;
  double fault_every_s_ = 1;
  bool laggy_ = false;
  Sink* liar_ = nullptr;
  bool quiet_ = false;  // nothing but the liar goes wrong
  int64_t cost_ = 0;    // publishes
  // trainer and source
  bool registered_ = false;
  PlanInfo plan_;
  uint64_t version_ = 0;          // highest asked for
  uint64_t former_versions_ = 0;  // highest asked for in an earlier life of the agent
  Hash128 content_;               // of the trainer's memory
  std::optional<uint64_t> awaited_;
  absl::Time asked_at_;
  bool released_ = false;  // awaited_ is
  bool last_failed_ = false;
  bool publish_on_ = true;
  int answered_ = 0;
  uint64_t encoding_ = 0;  // version; 0: none
  uint64_t encode_work_ = 0;
  uint64_t check_epoch_ = 0;
  ServedVersion encoded_, retained_;
  bool lose_version_ = false;    // the next encoding
  bool lose_transport_ = false;  // the next session
  std::shared_ptr<Session> session_;
  uint64_t tokens_ = 0;
};

}  // namespace wsync::sim

#endif  // WSYNC_TESTS_CORE_SIMULATION_WORLD_H_
