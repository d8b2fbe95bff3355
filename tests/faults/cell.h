// One cell of the fault table: what happens, to whom, at which step. cell_judge.h has what must become of the version.
#ifndef WSYNC_TESTS_FAULTS_CELL_H_
#define WSYNC_TESTS_FAULTS_CELL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/faults/group.h"

namespace wsync::faults {

enum class Side : uint8_t { kTrainerAgent = 1, kRolloutAgent, kTrainerProcess, kEngine };

struct Cell {
  Side side = Side::kRolloutAgent;
  std::string step;
  Fault fault = Fault::kNone;
  int argument = 0;
  std::string Name() const;  // "RolloutAgent_Kill_commit"
};

std::vector<Cell> AllCells();

// Memory modes, policy and victim follow from the seed; seed 1 is the default configuration.
struct Variant {
  uint64_t seed = 1;
  bool ring = false;
  bool in_place = false;
  bool quorum = false;
};
Variant VariantOf(uint64_t seed);
GroupOptions OptionsOf(const Variant& variant);
// The failpoints of a version, met in a catch-up: "catch_up.begin".
bool IsOfCatchUp(const std::string& step);
// In place nothing is applied: bytes land where they are served. In ring mode nothing is kept for a catch-up.
bool HasStep(const Variant& variant, const Cell& cell);

struct Outcome {
  absl::Status status;       // what was broken
  std::string became;        // of the version: "committed by all", "committed by survivors", "failed"
  std::string said;          // to the training process
  absl::Duration unblocked;  // from the fault to the publish's answer
  absl::Duration recovered;  // from the fault to the next committed version
  absl::Duration healed;     // from the fault to everybody being ready again
};

// In a job that is in sync with `*version`; afterwards it is again, with a later one.
Outcome RunCell(const Cell& cell, const Variant& variant, Group& group, uint64_t* version);

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_CELL_H_
