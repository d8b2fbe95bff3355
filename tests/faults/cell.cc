#include "tests/faults/cell.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rpc/daemon.h"
#include "tests/faults/cell_judge.h"

namespace wsync::faults {
namespace {

// A killed peer costs the trainer a second, a stopped one five (heartbeats and keepalives of 3 s), its own agent as
// well; nothing costs more than ten, where a deadline has to end it. Half a second more is what two busy cores take to
// tell us; ten are the end, and the deadlines have room below them.
constexpr absl::Duration kKilledLimit = absl::Seconds(1);
constexpr absl::Duration kStoppedLimit = absl::Seconds(5);
constexpr absl::Duration kHardLimit = absl::Seconds(10);
constexpr absl::Duration kSlack = absl::Milliseconds(500);
// From a fault to the next version that is committed. Whoever stands still is given back to the job, or replaced, only
// once the publish is answered: from there, then.
constexpr absl::Duration kRecoverLimit = absl::Seconds(5);
constexpr absl::Duration kHealLimit = absl::Seconds(15);
constexpr absl::Duration kCatchUpLimit = absl::Seconds(5);  // its first repetition comes after one
constexpr absl::Duration kExitLimit = absl::Seconds(15);    // for a hung agent to end itself, from the answer on
constexpr absl::Duration kFireLimit = absl::Seconds(15);

class Run {
 public:
  Run(const Cell& cell, const Variant& variant, Group& group, uint64_t* version)
      : cell_(cell),
        variant_(variant),
        group_(group),
        version_(version),
        victim_(variant.seed % group.rollouts()),
        judge_(cell, variant, victim_, group.buckets()) {}

  Outcome Go() {
    const auto status = group_.agents().Status();
    if (!status.ok()) return {.status = status.status()};
    epoch_ = status->epoch();
    before_ = *version_;
    during_ = before_ + 1;
    *version_ = before_ + 2;
    for (const auto step : {&Run::Begin, &Run::AwaitFault, &Run::AwaitAnswer, &Run::CheckSurvivors, &Run::Recover,
                            &Run::CheckSettled, &Run::PublishNext, &Run::CheckRecovery}) {
      outcome_.status = (this->*step)();
      if (!outcome_.status.ok()) break;
    }
    return outcome_;
  }

 private:
  bool OfAgent() const { return cell_.side == Side::kTrainerAgent || cell_.side == Side::kRolloutAgent; }
  bool Ends() const { return cell_.fault == Fault::kKill || cell_.fault == Fault::kExit; }
  bool StandsStill() const { return cell_.fault == Fault::kStop || cell_.fault == Fault::kHang; }
  std::string Agent() const {
    return cell_.side == Side::kTrainerAgent ? "trainer" : absl::StrCat("rollout-", victim_);
  }
  std::string Failpoint() const {
    const bool catch_up = IsOfCatchUp(cell_.step);
    return absl::StrCat(cell_.side == Side::kTrainerAgent ? "trainer." : "rollout.",
                        catch_up ? cell_.step.substr(cell_.step.find('.') + 1) : cell_.step);
  }
  pid_t Victim() {
    switch (cell_.side) {
      case Side::kTrainerAgent:
        return group_.agents().trainer_pid();
      case Side::kRolloutAgent:
        return group_.agents().rollout_pid(victim_);
      case Side::kTrainerProcess:
        return group_.trainer().pid();
      case Side::kEngine:
        return group_.engine(victim_).pid();
    }
    return -1;
  }
  bool IsVictim(int rollout) const {
    return rollout == victim_ && (cell_.side == Side::kRolloutAgent || cell_.side == Side::kEngine ||
                                  cell_.step == "join" || cell_.step == "catalog" || cell_.step == "resend");
  }
  // Its engine's memory is another by the end of the cell.
  bool WasReplaced(int rollout) const {
    return IsVictim(rollout) && (IsBeforeVersions(cell_.step) || Ends() || StandsStill());
  }

  absl::Status Begin();
  absl::Status BeginAgain();
  absl::Status AwaitFault();
  bool Happened();
  absl::Status AwaitAnswer();
  absl::Status Take(const Published& published);
  absl::Status CheckEpoch(const Published& published);
  Allowed MayHold(int rollout) const;
  Allowed MustHold(int rollout) const;
  absl::Status CheckSurvivors();
  absl::Status FailNext();
  absl::Status AwaitExitForRestart();
  absl::Status Recover();
  absl::Status CheckSettled();
  absl::Status PublishNext();
  absl::Status CheckRecovery();

  const Cell& cell_;
  const Variant& variant_;
  Group& group_;
  uint64_t* const version_;
  const int victim_;
  uint64_t before_ = 0, during_ = 0;
  const Judge judge_;
  uint64_t epoch_ = 0;  // of the last version that was accepted
  int fired_before_ = 0;
  absl::Time fault_at_;
  absl::Time ended_;  // of an agent that ended itself
  bool committed_ = false;
  bool answered_ = false;
  std::map<std::string, v1::OutcomeCode> outcomes_;  // of each replica, if it was committed
  Outcome outcome_;
};

absl::Status Run::Begin() {
  if (IsBeforeVersions(cell_.step)) return BeginAgain();
  if (OfAgent()) {
    fired_before_ = group_.TimesFired(Agent(), Failpoint());
    if (absl::Status armed = ArmFailpoint(Victim(), Failpoint(), cell_.fault, cell_.argument); !armed.ok())
      return armed;
  } else {
    ChildProcess& client = cell_.side == Side::kEngine ? group_.engine(victim_) : group_.trainer();
    client.Forget();
    client.Tell(absl::StrCat("at ", cell_.step, " ", static_cast<int>(cell_.fault), " ", cell_.argument));
    if (!client.Await("armed", Scaled(kHardLimit))) return absl::UnavailableError("the victim does not answer");
  }
  group_.BeginPublish(during_);
  return absl::OkStatus();
}

// The member comes again, to meet its fault on the way in.
absl::Status Run::BeginAgain() {
  fired_before_ = OfAgent() ? group_.TimesFired(Agent(), Failpoint()) : 0;
  const std::string at = absl::StrCat("at ", cell_.step, " ", static_cast<int>(cell_.fault), " ", cell_.argument);
  switch (cell_.side) {
    case Side::kTrainerAgent: {
      if (absl::Status armed = ArmFailpoint(Victim(), Failpoint(), cell_.fault, cell_.argument); !armed.ok())
        return armed;
      if (cell_.step == "register" || cell_.step == "registered") return group_.StartTrainerProcess();
      group_.agents().KillRollout(victim_);
      return group_.agents().LaunchRollout(victim_);
    }
    case Side::kRolloutAgent: {
      if (cell_.step == "attach") {
        const absl::Status armed = ArmFailpoint(Victim(), Failpoint(), cell_.fault, cell_.argument);
        return armed.ok() ? group_.StartEngine(victim_) : armed;
      }
      group_.agents().KillRollout(victim_);
      setenv("WSYNC_FAILPOINTS", ArmCommand(Failpoint(), cell_.fault, cell_.argument).c_str(), 1);
      const absl::Status launched = group_.agents().LaunchRollout(victim_);
      unsetenv("WSYNC_FAILPOINTS");
      return launched;
    }
    case Side::kTrainerProcess:
      return group_.StartTrainerProcess(at);
    case Side::kEngine:
      return group_.StartEngine(victim_, at);
  }
  return absl::OkStatus();
}

bool Run::Happened() {
  if (OfAgent()) return group_.TimesFired(Agent(), Failpoint()) > fired_before_;
  if (Ends()) return HasEnded(Victim());
  if (cell_.fault == Fault::kStop) return HasStopped(Victim());
  return (cell_.side == Side::kEngine ? group_.engine(victim_) : group_.trainer()).Said("fault ");
}

absl::Status Run::AwaitFault() {
  const absl::Time deadline = MonotonicNow() + Scaled(kFireLimit);
  while (!Happened()) {
    if (MonotonicNow() > deadline) return absl::DeadlineExceededError("the step was never reached");
    usleep(1000);
  }
  while (Ends() && !HasEnded(Victim()) && MonotonicNow() < deadline) usleep(1000);
  while (cell_.fault == Fault::kStop && !HasStopped(Victim()) && MonotonicNow() < deadline) usleep(1000);
  fault_at_ = MonotonicNow();
  if (!Ends()) return absl::OkStatus();
  // A supervisor starts dead agents again, and a job its dead training process; what serves is restarted later.
  if (cell_.side == Side::kTrainerAgent) return group_.agents().RestartTrainer();
  return absl::OkStatus();
}

absl::Status Run::AwaitAnswer() {
  // Who stopped on its way in, or asks a trainer that did, is followed by a publish of its own.
  const bool trainer_process = cell_.side == Side::kTrainerProcess;
  if (trainer_process && cell_.fault == Fault::kStop) {
    usleep(300'000);  // it sleeps through its own version, which goes on without it
    group_.trainer().Signal(SIGCONT);
  }
  if (trainer_process && Ends()) {
    outcome_.became = "nobody is left to tell";
    return absl::OkStatus();
  }
  if (IsBeforeVersions(cell_.step)) {
    if (cell_.fault == Fault::kStop && cell_.side == Side::kTrainerAgent) {
      usleep(300'000);
      kill(Victim(), SIGCONT);
    }
    if (trainer_process || cell_.step == "register" || cell_.step == "registered") {
      if (!group_.trainer().Await("registered", Scaled(kHardLimit))) return absl::UnavailableError("not registered");
    }
    group_.BeginPublish(during_);
  }
  const absl::Duration limit = Ends()                        ? kKilledLimit + kSlack
                               : cell_.fault == Fault::kStop ? kStoppedLimit + kSlack
                                                             : kHardLimit;
  const std::optional<Published> published = group_.AwaitPublished(Scaled(kHardLimit + absl::Seconds(5)));
  if (!published.has_value()) return absl::DeadlineExceededError("the publish was never answered");
  answered_ = true;
  outcome_.unblocked = published->at - fault_at_;
  if (outcome_.unblocked > Scaled(limit)) {
    return absl::DeadlineExceededError(absl::StrCat("the publish was answered ",
                                                    absl::FormatDuration(outcome_.unblocked),
                                                    " after the fault: ", published->message));
  }
  return Take(*published);
}

absl::Status Run::Take(const Published& published) {
  committed_ = published.ok();
  outcomes_ = published.outcomes;
  outcome_.said = published.message;
  outcome_.became = NameOf(BecameOf(published));
  if (committed_) outcome_.recovered = outcome_.unblocked;
  if (absl::Status status = judge_.CheckAnswer(published); !status.ok()) return status;
  if (absl::Status status = CheckEpoch(published); !status.ok()) return status;
  if (cell_.side != Side::kRolloutAgent || !(Ends() || cell_.fault == Fault::kStop) || IsBeforeVersions(cell_.step)) {
    return absl::OkStatus();
  }
  const auto status = group_.agents().Status();
  return status.ok() ? judge_.CheckLost(*status) : status.status();
}

// Epochs only grow, while the trainer agent lives.
absl::Status Run::CheckEpoch(const Published& published) {
  const uint64_t former = std::exchange(epoch_, published.epoch);
  const bool other_agent = cell_.side == Side::kTrainerAgent && (Ends() || cell_.fault == Fault::kHang);
  if (published.epoch > (other_agent ? 0 : former)) return absl::OkStatus();
  if (published.epoch == 0 && !published.ok()) return absl::OkStatus();  // not accepted
  return absl::FailedPreconditionError(absl::StrCat("epoch ", published.epoch, " came after ", former));
}

// By what the publish was answered with: exactly this version, bytes and all, whoever is said to have applied it, and
// nobody where it failed. The rest what they had, or, receiving in place, nothing that they would read.
Allowed Run::MayHold(int rollout) const {
  const auto outcome = outcomes_.find(absl::StrCat("rollout-", rollout));
  if (outcome != outcomes_.end() && outcome->second == v1::OUTCOME_APPLIED) return {.versions = {during_}};
  const bool torn = outcome != outcomes_.end() && outcome->second == v1::OUTCOME_TORN;
  Allowed allowed{.versions = {before_}};
  if (IsVictim(rollout) && IsBeforeVersions(cell_.step)) allowed.versions.push_back(0);
  // Left out of a version that is committed it may have caught up since, or applied it and not lived to say so. After
  // the death of who would answer nobody knows.
  const bool known = answered_ && cell_.side != Side::kTrainerAgent;
  if (committed_ || !known) allowed.versions.push_back(during_);
  allowed.torn = variant_.in_place || torn;
  allowed.paused = allowed.torn || IsVictim(rollout) || !known;
  return allowed;
}

absl::Status Run::CheckSurvivors() {
  for (int i = 0; i < group_.rollouts(); ++i) {
    if (IsVictim(i) && cell_.side == Side::kEngine && (Ends() || StandsStill())) continue;  // it cannot be asked
    const Allowed allowed = MayHold(i);
    const absl::Status status = allowed.versions == std::vector<uint64_t>{during_}
                                    ? group_.AwaitVersion(i, during_, Scaled(kSlack))
                                    : group_.CheckContent(i, allowed);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Once all are there again, what was committed is everybody's, if the source still has it; and what was not nobody's.
Allowed Run::MustHold(int rollout) const {
  if (committed_ && !variant_.ring) return {.versions = {during_}};
  Allowed allowed = MayHold(rollout);
  if (allowed.versions == std::vector<uint64_t>{during_} && !WasReplaced(rollout)) return allowed;
  if (WasReplaced(rollout)) allowed.versions.push_back(0);
  allowed.torn = variant_.in_place || (committed_ && variant_.ring);
  allowed.paused = false;
  return allowed;
}

absl::Status Run::CheckSettled() {
  std::vector<Allowed> allowed;
  for (int i = 0; i < group_.rollouts(); ++i) allowed.push_back(MustHold(i));
  const absl::Time deadline = MonotonicNow() + Scaled(kCatchUpLimit);
  while (true) {
    const absl::Status status = group_.CheckStatus(allowed);
    if (status.ok() || MonotonicNow() > deadline) return status;
    usleep(10'000);
  }
}

// Nobody missed the thread yet: the next version does, and is called off for it.
absl::Status Run::FailNext() {
  const std::optional<Published> published = group_.Publish(*version_, Scaled(kHardLimit));
  if (!published.has_value()) return absl::DeadlineExceededError("the version after a hang was not answered");
  return published->ok() ? absl::InternalError("the version after a hang was committed") : absl::OkStatus();
}

absl::Status Run::AwaitExitForRestart() {
  const absl::Time deadline = MonotonicNow() + Scaled(kExitLimit);
  int status = 0;
  while (waitpid(Victim(), &status, WNOHANG) == 0) {
    if (MonotonicNow() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("the hung agent was still there ", absl::FormatDuration(MonotonicNow() - fault_at_), " after"));
    }
    usleep(5000);
  }
  ended_ = MonotonicNow();
  if (WIFEXITED(status) && WEXITSTATUS(status) == kExitForRestart) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the hung agent ended with wait status ", status));
}

absl::Status Run::Recover() {
  absl::Status status;
  if (cell_.fault == Fault::kStop && cell_.side != Side::kTrainerProcess) kill(Victim(), SIGCONT);
  // A hung agent is not killed from outside: its supervisor waits for it as well.
  if (OfAgent() && cell_.fault == Fault::kHang) {
    if (cell_.side == Side::kTrainerAgent && committed_) status = FailNext();
    if (status.ok()) status = AwaitExitForRestart();
  }
  if (!status.ok()) return status;
  if (cell_.side == Side::kTrainerAgent && cell_.fault == Fault::kHang) status = group_.agents().RestartTrainer();
  if (cell_.side == Side::kRolloutAgent && (Ends() || cell_.fault == Fault::kHang)) {
    group_.agents().KillRollout(victim_);
    status = group_.agents().StartRollout(victim_);
  }
  if (cell_.side == Side::kEngine && (Ends() || cell_.fault == Fault::kHang)) status = group_.StartEngine(victim_);
  if (cell_.side == Side::kTrainerProcess && Ends()) status = group_.StartTrainerProcess();
  if (!status.ok()) return status;
  status = group_.AwaitReady(Scaled(kHealLimit));
  outcome_.healed = MonotonicNow() - fault_at_;
  return status;
}

absl::Status Run::PublishNext() {
  const std::optional<Published> published = group_.Publish(*version_, Scaled(kHardLimit));
  if (!published.has_value()) return absl::DeadlineExceededError("the next version was not answered");
  if (!published->ByAll()) {
    return absl::Status(published->ok() ? absl::StatusCode::kInternal : published->code,
                        absl::StrCat("the next version: ", published->message));
  }
  if (absl::Status status = CheckEpoch(*published); !status.ok()) return status;
  if (!committed_) outcome_.recovered = published->at - fault_at_;
  for (int i = 0; i < group_.rollouts(); ++i) {
    if (absl::Status status = group_.AwaitVersion(i, *version_, Scaled(absl::Seconds(5))); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Run::CheckRecovery() {
  absl::Duration took = outcome_.recovered - (StandsStill() ? outcome_.unblocked : absl::ZeroDuration());
  if (OfAgent() && cell_.fault == Fault::kHang) took = outcome_.recovered - (ended_ - fault_at_);
  if (took <= Scaled(kRecoverLimit)) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("the next version was committed ", absl::FormatDuration(took),
                                                  " after ",
                                                  StandsStill() ? "the publish's answer, or its end" : "the fault"));
}

}  // namespace

Outcome RunCell(const Cell& cell, const Variant& variant, Group& group, uint64_t* version) {
  return Run(cell, variant, group, version).Go();
}

}  // namespace wsync::faults
