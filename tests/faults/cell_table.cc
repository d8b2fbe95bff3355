// Which faults are tried at which steps.
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/faults/cell.h"

namespace wsync::faults {
namespace {

constexpr int kUnavailable = static_cast<int>(absl::StatusCode::kUnavailable);
constexpr int kInternal = static_cast<int>(absl::StatusCode::kInternal);
constexpr int kLateMs = 700;  // longer than a round's grace for explanations (RoundOptions::settle), no timeout at all
constexpr int kExitCode = 9;
constexpr int kHeldMs = 400;  // two heartbeats of a version come by then, and say at which bucket it is held

const char* NameOf(Side side) {
  switch (side) {
    case Side::kTrainerAgent:
      return "TrainerAgent";
    case Side::kRolloutAgent:
      return "RolloutAgent";
    case Side::kTrainerProcess:
      return "TrainerProcess";
    case Side::kEngine:
      return "Engine";
  }
  return "";
}

const char* NameOf(Fault fault) {
  constexpr const char* kNames[] = {"None", "Error", "Kill", "Stop", "Delay", "Exit", "Hang", "Corrupt"};
  return kNames[static_cast<int>(fault)];
}

class Table {
 public:
  void Add(Side side, Fault fault, int argument, const std::vector<std::string>& steps) {
    for (const std::string& step : steps) cells_.push_back({side, step, fault, argument});
  }
  std::vector<Cell> Take() { return std::move(cells_); }

 private:
  std::vector<Cell> cells_;
};

void AddRolloutAgent(Table& table) {
  for (const Fault fault : {Fault::kKill, Fault::kStop}) {
    table.Add(Side::kRolloutAgent, fault, 0, {"join", "catalog", "attach", "begin", "connect"});
    table.Add(Side::kRolloutAgent, fault, kHeldMs,
              {"bucket.first", "bucket.middle", "bucket.last", "broadcast.middle"});
    table.Add(Side::kRolloutAgent, fault, 0, {"staged", "commit", "pause", "apply", "copied", "applied"});
    // As it gets the committed version on its way in.
    table.Add(Side::kRolloutAgent, fault, 0,
              {"catch_up.begin", "catch_up.bucket.middle", "catch_up.staged", "catch_up.commit", "catch_up.applied"});
  }
  table.Add(Side::kRolloutAgent, Fault::kExit, kExitCode, {"begin", "bucket.middle", "apply"});
  table.Add(Side::kRolloutAgent, Fault::kDelay, kLateMs,
            {"begin", "connect", "bucket.first", "bucket.last", "staged", "commit", "pause", "apply", "applied"});
  // The session is at fault, not the sink: the version is sent again in another one.
  table.Add(Side::kRolloutAgent, Fault::kError, kUnavailable,
            {"connect", "bucket.first", "bucket.middle", "bucket.last"});
  table.Add(Side::kRolloutAgent, Fault::kError, kInternal,
            {"bucket.middle", "apply"});  // the latter: torn, and says so
  table.Add(Side::kRolloutAgent, Fault::kCorrupt, 4711, {"chunk"});
  // Its heartbeats go on while its receiving thread stands still: only deadlines end that.
  table.Add(Side::kRolloutAgent, Fault::kHang, 0, {"connect", "bucket.middle", "apply"});
}

void AddTrainerAgent(Table& table) {
  const std::vector<std::string> steps = {"register",    "registered",      "join",    "catalog",      "resend",
                                          "begin",       "encode.middle",   "connect", "bucket.first", "bucket.middle",
                                          "bucket.last", "released",        "staged",  "commit",       "applied",
                                          "done",        "broadcast.middle"};
  table.Add(Side::kTrainerAgent, Fault::kKill, 0, steps);
  table.Add(Side::kTrainerAgent, Fault::kStop, 0, steps);
  table.Add(Side::kTrainerAgent, Fault::kDelay, kLateMs,
            {"begin", "encode.middle", "connect", "bucket.middle", "released", "staged", "commit", "applied", "done"});
  // The encoder's thread, and the sender's before and after its bytes are on their way.
  table.Add(Side::kTrainerAgent, Fault::kHang, 0, {"encode.middle", "broadcast.middle", "bucket.middle"});
  table.Add(Side::kTrainerAgent, Fault::kError, kUnavailable,
            {"connect", "bucket.first", "bucket.middle", "bucket.last"});
}

void AddTrainerProcess(Table& table) {
  for (const Fault fault : {Fault::kKill, Fault::kStop}) {
    table.Add(Side::kTrainerProcess, fault, 0, {"register", "registered", "accepted", "released", "committed"});
  }
}

void AddEngine(Table& table) {
  for (const Fault fault : {Fault::kKill, Fault::kStop}) {
    table.Add(Side::kEngine, fault, 0, {"attach", "attached", "prepare", "pause", "paused", "applied"});
  }
  table.Add(Side::kEngine, Fault::kHang, 0, {"pause"});  // answers pings, never pauses
  table.Add(Side::kEngine, Fault::kDelay, kLateMs, {"prepare", "pause", "paused"});
}

}  // namespace

std::string Cell::Name() const {
  std::string name =
      absl::StrCat(NameOf(side), "_", NameOf(fault), fault == Fault::kError ? absl::StrCat(argument) : "", "_", step);
  for (char& c : name) c = c == '.' ? '_' : c;
  return name;
}

std::vector<Cell> AllCells() {
  Table table;
  AddRolloutAgent(table);
  AddTrainerAgent(table);
  AddTrainerProcess(table);
  AddEngine(table);
  return table.Take();
}

bool IsOfCatchUp(const std::string& step) { return absl::StartsWith(step, "catch_up."); }

Variant VariantOf(uint64_t seed) {
  if (seed == 1) return {};
  return {.seed = seed, .ring = seed % 4 == 0, .in_place = seed % 3 == 0, .quorum = seed % 5 == 0};
}

bool HasStep(const Variant& variant, const Cell& cell) {
  // A hung agent ends after 20 s. Six of twenty seeds have all modes.
  const bool of_agent = cell.side == Side::kTrainerAgent || cell.side == Side::kRolloutAgent;
  if (of_agent && cell.fault == Fault::kHang && variant.seed > 4 && variant.seed % 10 != 0) return false;
  if (variant.ring && (cell.step == "resend" || IsOfCatchUp(cell.step))) return false;
  return !variant.in_place || cell.side != Side::kRolloutAgent || (cell.step != "apply" && cell.step != "copied");
}

GroupOptions OptionsOf(const Variant& variant) {
  GroupOptions options;
  if (variant.ring) options.trainer_flags.emplace_back("transfer.source_mode", "ring");
  if (variant.in_place) options.rollout_flags.emplace_back("transfer.sink_mode", "in_place");
  if (variant.quorum) options.trainer_flags.emplace_back("coordinator.policy", "quorum");
  return options;
}

}  // namespace wsync::faults
