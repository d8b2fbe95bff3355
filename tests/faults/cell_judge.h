// What may become of a version in one cell, and what has to be said about its victim: to the training process, and in
// the status. What depends on timing is a set that is listed here; everything else is one thing.
#ifndef WSYNC_TESTS_FAULTS_CELL_JUDGE_H_
#define WSYNC_TESTS_FAULTS_CELL_JUDGE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/faults/cell.h"

namespace wsync::faults {

enum class Became : uint8_t { kByAll = 1, kBySurvivors, kFailed };
Became BecameOf(const Published& published);
std::string NameOf(Became became);

std::vector<Became> MayBecome(const Cell& cell, const Variant& variant);

std::string ExpectedOf(const Cell& cell, const Variant& variant);  // in words

// The steps of a member's way into the group, which it takes once, before any version.
bool IsBeforeVersions(const std::string& step);

class Judge {
 public:
  // `victim`: the rollout that is hit, or whose engine is. `buckets`: of the plan.
  Judge(const Cell& cell, const Variant& variant, int victim, int64_t buckets)
      : cell_(cell), variant_(variant), victim_(victim), buckets_(buckets) {}

  // It became what it may; who was left out or made it fail is the victim, named with its phase, its bucket where the
  // step is a bucket's, and its age.
  absl::Status CheckAnswer(const Published& published) const;
  // The same of a rollout agent that is gone, by what the coordinator lists.
  absl::Status CheckLost(const v1::JobStatus& status) const;

 private:
  bool OfRollout() const { return cell_.side == Side::kRolloutAgent || cell_.side == Side::kEngine; }
  bool StandsStill() const { return cell_.side == Side::kRolloutAgent && cell_.fault == Fault::kStop; }
  std::string Name() const;
  std::string Verb() const;
  std::string Phases() const;
  std::string Bucket() const;
  absl::Status CheckRolloutNamed(const std::string& said) const;
  absl::Status CheckTrainerNamed(const std::string& said) const;
  absl::Status CheckAge(const std::string& said, const std::string& seconds, bool stands_still) const;

  const Cell& cell_;
  const Variant& variant_;
  const int victim_;
  const int64_t buckets_;
};

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_CELL_JUDGE_H_
