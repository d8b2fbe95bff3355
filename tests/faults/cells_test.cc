// The fault table: every fault at every step, on real processes. WSYNC_FAULT_SEEDS says how often (default 1: the
// default configuration; further seeds have other memory modes, policies and victims).
//
// A job lives on from cell to cell: it has to survive them all. One that broke is replaced, with its logs kept.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/faults/cell.h"
#include "tests/faults/cell_judge.h"

namespace wsync::faults {
namespace {

struct Case {
  uint64_t seed = 1;
  int row = 0;  // of the table
  Cell cell;
};

std::vector<Case> AllCases() {
  const char* text = std::getenv("WSYNC_FAULT_SEEDS");
  const uint64_t seeds = text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
  std::vector<Case> cases;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    int row = 0;
    for (const Cell& cell : AllCells()) {
      ++row;  // also of a cell that this variant does not have: tables of several seeds are in one order
      if (HasStep(VariantOf(seed), cell)) cases.push_back({seed, row, cell});
    }
  }
  return cases;
}

// The job that the cases of one seed share.
struct Job {
  uint64_t seed = 0;
  uint64_t version = 0;
  std::unique_ptr<Group> group;
};
Job job;

absl::Status Prepare(const Variant& variant) {
  if (job.group != nullptr && job.seed == variant.seed) return absl::OkStatus();
  job = {variant.seed, 1, nullptr};
  auto group = Group::Start(OptionsOf(variant));
  if (!group.ok()) return group.status();
  job.group = *std::move(group);
  const std::optional<Published> first = job.group->Publish(1, Scaled(absl::Seconds(20)));
  if (first.has_value() && first->ok()) return job.group->AwaitReady(Scaled(absl::Seconds(10)));
  return absl::InternalError(absl::StrCat("the first version: ", first.has_value() ? first->message : "no answer"));
}

class Cells : public ::testing::TestWithParam<Case> {
 protected:
  static void TearDownTestSuite() { job = {}; }
};

TEST_P(Cells, RuleHolds) {
  const auto& [seed, row, cell] = GetParam();
  const Variant variant = VariantOf(seed);
  const absl::Status ready = Prepare(variant);
  ASSERT_TRUE(ready.ok()) << ready;
  const Outcome outcome = RunCell(cell, variant, *job.group, &job.version);
  std::printf("CELL|%d|%s|%llu|%s|%.2f|%.2f|%.2f|%s\n", row, cell.Name().c_str(), static_cast<unsigned long long>(seed),
              outcome.became.c_str(), absl::ToDoubleSeconds(outcome.unblocked),
              absl::ToDoubleSeconds(outcome.recovered), absl::ToDoubleSeconds(outcome.healed),
              ExpectedOf(cell, variant).c_str());
  std::printf("SAID|%s|%llu|%s\n", cell.Name().c_str(), static_cast<unsigned long long>(seed), outcome.said.c_str());
  std::fflush(stdout);
  if (outcome.status.ok()) return;
  const std::string directory = job.group->agents().directory();
  job.group->agents().Keep();
  job = {};
  FAIL() << outcome.status << "\nlogs in " << directory;
}

INSTANTIATE_TEST_SUITE_P(Faults, Cells, ::testing::ValuesIn(AllCases()), [](const auto& test) {
  return absl::StrCat(test.param.cell.Name(), "_seed", test.param.seed);
});

}  // namespace
}  // namespace wsync::faults
