#include "tests/faults/cell_judge.h"

#include <algorithm>
#include <regex>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/faults/environment.h"

namespace wsync::faults {
namespace {

constexpr double kBeat = 1.5;     // seconds; whoever lives is heard of once in one, and a busy core takes its time
constexpr double kSilence = 2;    // at least, of who stands still: 3 s, of which one may have been before the version
constexpr double kLongest = 4.5;  // at most: keepalives notice it after 4 s

constexpr int kInternal = static_cast<int>(absl::StatusCode::kInternal);

using Set = std::vector<Became>;

bool IsOneOf(const std::string& step, std::initializer_list<const char*> steps) {
  return std::any_of(steps.begin(), steps.end(), [&](const char* other) { return step == other; });
}

bool OfTransfer(const std::string& step) {
  return IsOneOf(step, {"bucket.first", "bucket.middle", "bucket.last", "broadcast.middle"});
}

Set OfRolloutAgent(const Cell& cell, const Variant& variant) {
  const bool lossy = variant.ring;  // nothing is kept to send it again once the weights are released
  switch (cell.fault) {
    case Fault::kError:
      if (cell.step == "apply") return {Became::kBySurvivors};
      if (cell.argument == kInternal) return {variant.quorum ? Became::kBySurvivors : Became::kFailed};
      if (!lossy) return {Became::kByAll};
      return variant.quorum ? Set{Became::kByAll, Became::kBySurvivors} : Set{Became::kByAll, Became::kFailed};
    case Fault::kCorrupt:
      if (variant.quorum) return {Became::kBySurvivors};
      return lossy ? Set{Became::kByAll, Became::kFailed} : Set{Became::kByAll};
    case Fault::kDelay:
      return {Became::kByAll};
    default:
      break;
  }
  // Whether it counts as ready once the catch-up was called off for the version is a matter of milliseconds.
  if (IsOfCatchUp(cell.step)) return {Became::kByAll, Became::kBySurvivors};
  if (IsBeforeVersions(cell.step)) return {Became::kByAll};  // it is nobody whom the version waits for
  if (lossy && cell.fault != Fault::kHang && (OfTransfer(cell.step) || cell.step == "staged")) {
    return {Became::kBySurvivors, Became::kFailed};
  }
  return {Became::kBySurvivors};
}

// Before `released` the client library publishes again on an agent that is back; after it the weights may have changed.
// In ring mode they are released when all is on the wire, else whenever all is encoded.
Set OfTrainerAgent(const Cell& cell, const Variant& variant) {
  if (cell.fault == Fault::kDelay || cell.fault == Fault::kError || IsBeforeVersions(cell.step)) {
    return {Became::kByAll};
  }
  if (cell.fault == Fault::kHang) {  // in full mode the sinks have everything, and do not wait for its end
    return {cell.step == "bucket.middle" && !variant.ring ? Became::kByAll : Became::kFailed};
  }
  if (cell.fault == Fault::kStop || IsOneOf(cell.step, {"commit", "applied", "done"})) return {Became::kFailed};
  if (IsOneOf(cell.step, {"begin", "encode.middle", "released"})) return {Became::kByAll};
  if (variant.ring && cell.step != "staged") return {Became::kByAll};
  return {Became::kByAll, Became::kFailed};
}

Set OfEngine(const Cell& cell, const Variant& variant) {
  if (cell.fault == Fault::kHang) return {Became::kBySurvivors};
  if (cell.fault == Fault::kDelay || IsOneOf(cell.step, {"attach", "applied"})) return {Became::kByAll};
  Set set;
  // It is out before the version begins, or has told that it is paused, and needs nothing more to be right.
  if (cell.step == "attached" || cell.step == "paused") set.push_back(Became::kByAll);
  set.push_back(Became::kBySurvivors);
  if (variant.ring) set.push_back(Became::kFailed);  // nothing is kept to send it again to the others
  return set;
}

}  // namespace

bool IsBeforeVersions(const std::string& step) {
  return IsOfCatchUp(step) ||
         IsOneOf(step, {"join", "catalog", "register", "registered", "attach", "attached", "resend"});
}

Became BecameOf(const Published& published) {
  return published.ByAll() ? Became::kByAll : published.ok() ? Became::kBySurvivors : Became::kFailed;
}

std::string NameOf(Became became) {
  switch (became) {
    case Became::kByAll:
      return "committed by all";
    case Became::kBySurvivors:
      return "committed by survivors";
    case Became::kFailed:
      return "failed";
  }
  return "";
}

std::vector<Became> MayBecome(const Cell& cell, const Variant& variant) {
  switch (cell.side) {
    case Side::kRolloutAgent:
      return OfRolloutAgent(cell, variant);
    case Side::kTrainerAgent:
      return OfTrainerAgent(cell, variant);
    case Side::kTrainerProcess:
      return {Became::kByAll};
    case Side::kEngine:
      return OfEngine(cell, variant);
  }
  return {};
}

std::string ExpectedOf(const Cell& cell, const Variant& variant) {
  if (cell.side == Side::kTrainerProcess && cell.fault == Fault::kKill) return "whole or not at all";
  std::vector<std::string> names;
  for (const Became became : MayBecome(cell, variant)) names.push_back(NameOf(became));
  return absl::StrJoin(names, " or ");
}

// ---- what is said

std::string Judge::Name() const { return absl::StrCat("rollout-", victim_); }

std::string Judge::Verb() const {
  if (cell_.fault == Fault::kHang) {  // or it has ended itself by then
    return cell_.side == Side::kEngine ? "did not (stage|apply) in time"
                                       : "(did not (stage|apply) in time|was lost( before it said 'applied')?)";
  }
  if (cell_.side == Side::kEngine || cell_.fault == Fault::kError || cell_.fault == Fault::kCorrupt) return "failed";
  return "was lost( before it said 'applied')?";
}

// Of a step before whose end nothing could be told, also the phase before it.
std::string Judge::Phases() const {
  const std::string& step = cell_.step;
  if (IsOfCatchUp(step)) return "connect|receive|staged|pause|apply";
  if (cell_.side == Side::kEngine) {
    if (cell_.fault == Fault::kHang || (step == "pause" && !variant_.in_place)) return "pause";
    return "connect|receive|staged|pause|apply";
  }
  if (IsOneOf(step, {"begin", "connect"})) return "connect";
  if (step == "pause") return variant_.in_place ? "connect" : "pause";
  if (step == "broadcast.middle" && variant_.in_place) return "receive|pause";  // the first buckets come before it
  if (OfTransfer(step) || IsOneOf(step, {"staged", "chunk"})) return "receive";
  if (step == "commit") return "pause";
  return cell_.fault == Fault::kError || cell_.fault == Fault::kHang ? "apply" : "apply|pause";
}

std::string Judge::Bucket() const {
  const bool told = cell_.side == Side::kRolloutAgent && cell_.fault != Fault::kExit;  // who exits does so at once
  if (told && cell_.step == "bucket.first") return ", bucket 0";
  if (told && cell_.step == "bucket.middle") return absl::StrCat(", bucket ", buckets_ / 2);
  if (told && cell_.step == "bucket.last") return absl::StrCat(", bucket ", buckets_ - 1);
  return cell_.fault == Fault::kCorrupt ? ", bucket [0-9]+" : "(, bucket [0-9]+)?";
}

absl::Status Judge::CheckAge(const std::string& said, const std::string& seconds, bool stands_still) const {
  double age = -1;
  const double factor = absl::FDivDuration(Scaled(absl::Seconds(1)), absl::Seconds(1));
  if (absl::SimpleAtod(seconds, &age) && age >= (stands_still ? kSilence : 0) &&
      age <= (stands_still ? kLongest : kBeat) * factor) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat("the victim's age is not right: ", said));
}

absl::Status Judge::CheckRolloutNamed(const std::string& said) const {
  // The engine's death may be heard of as the end of an attempt, and the next one begins without it.
  const std::string gone = absl::StrCat("not ready when the version was sent again: ", Name(),
                                        ": no engine attached: engine engine-", victim_, " (pid ");
  if (cell_.side == Side::kEngine && cell_.fault != Fault::kHang && absl::StrContains(said, gone)) {
    return absl::OkStatus();
  }
  const std::regex named(absl::StrCat("replica ", Name(), " rank 0 \\(", Name(), "\\) ", Verb(), " in phase (",
                                      Phases(), ")", Bucket(),
                                      ", [0-9.]+ s after begin, last heard of ([0-9.]+) s before: "));
  std::smatch match;
  if (!std::regex_search(said, match, named)) {
    return absl::FailedPreconditionError(absl::StrCat("the victim is not named, or not where it was: ", said));
  }
  return CheckAge(said, match[match.size() - 1], StandsStill());
}

absl::Status Judge::CheckTrainerNamed(const std::string& said) const {
  if (cell_.fault == Fault::kHang) {  // it says so itself, or has ended itself by then
    const std::regex named(
        "version [0-9]+ failed: the source (failed|did not (encode|bring) the version)|"
        "wsync-trainer at unix:.* was lost in phase (begin|encode|broadcast) of version");
    if (std::regex_search(said, named)) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("the source is not named: ", said));
  }
  const std::string phases = IsOneOf(cell_.step, {"commit", "applied", "done"}) ? "broadcast|apply"
                             : cell_.step == "staged"                           ? "encode|broadcast"
                             : cell_.step == "begin"                            ? "begin|encode"
                                                                                : "begin|encode|broadcast";
  const std::regex named(absl::StrCat("wsync-trainer at unix:.* was lost in phase (", phases,
                                      ") of version [0-9]+, last heard of ([0-9.]+) s before: "));
  std::smatch match;
  if (!std::regex_search(said, match, named)) {
    return absl::FailedPreconditionError(absl::StrCat("the agent is not named, or not where it was: ", said));
  }
  return CheckAge(said, match[2], cell_.fault == Fault::kStop);
}

absl::Status Judge::CheckAnswer(const Published& published) const {
  const std::vector<Became> may = MayBecome(cell_, variant_);
  const Became became = BecameOf(published);
  if (std::find(may.begin(), may.end(), became) == may.end()) {
    return absl::FailedPreconditionError(absl::StrCat(NameOf(became), ": ", published.message));
  }
  for (const auto& [replica, outcome] : published.outcomes) {
    if (outcome == v1::OUTCOME_APPLIED || (OfRollout() && replica == Name())) continue;
    return absl::FailedPreconditionError(absl::StrCat(replica, " was left out, too: ", published.message));
  }
  if (became == Became::kByAll) return absl::OkStatus();
  return OfRollout() ? CheckRolloutNamed(published.message) : CheckTrainerNamed(published.message);
}

absl::Status Judge::CheckLost(const v1::JobStatus& status) const {
  const std::regex named(
      absl::StrCat("\\(epoch [0-9]+, phase (", Phases(), ")", Bucket(), ", last heard of ([0-9.]+) s before\\)"));
  for (const v1::MemberStatus& member : status.members()) {
    if (member.name() != Name()) continue;
    const std::string said = absl::StrCat(member.state(), ": ", member.last_error());
    std::smatch match;
    if (member.state() != "lost" || !std::regex_search(said, match, named)) {
      return absl::FailedPreconditionError(
          absl::StrCat("the victim is not listed as lost, or not where it was: ", said));
    }
    return CheckAge(said, match[match.size() - 1], StandsStill());
  }
  return absl::NotFoundError(absl::StrCat(Name(), " is not listed"));
}

}  // namespace wsync::faults
