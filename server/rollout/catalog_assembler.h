// Puts the coordinator's catalog chunks together, and makes the plan that both sides must agree on.
//
// A peer sent this: counts are bounded before anything is kept, and the fingerprint and the plan's hash are compared
// with what was announced. Pure; one assembler per link.
#ifndef WSYNC_SERVER_ROLLOUT_CATALOG_ASSEMBLER_H_
#define WSYNC_SERVER_ROLLOUT_CATALOG_ASSEMBLER_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/plan.h"

namespace wsync {
namespace v1 {
class CatalogChunk;
}

struct AnnouncedCatalog {
  std::vector<Tensor> tensors;  // empty: there is no catalog (any more)
  RecipeRules rules;
  int64_t bucket_bytes = 0;
  Hash128 fingerprint;
  Hash128 plan_hash;
};

class CatalogAssembler {
 public:
  // The whole catalog with the last chunk, nullopt before. INVALID_ARGUMENT: chunks out of order, too many tensors, a
  // tensor or a rule that is none; what was collected is dropped then, and chunks up to the next first one are ignored.
  absl::StatusOr<std::optional<AnnouncedCatalog>> Add(const v1::CatalogChunk& chunk);

 private:
  absl::Status Append(const v1::CatalogChunk& chunk);

  enum class State { kBetween, kCollecting, kSkipping } state_ = State::kBetween;
  AnnouncedCatalog catalog_;
};

// FAILED_PRECONDITION naming both hashes when this side's catalog or plan is not the announced one.
absl::StatusOr<std::shared_ptr<const Plan>> MakePlan(AnnouncedCatalog announced);

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_CATALOG_ASSEMBLER_H_
