// The model that fault scenarios move, and what an engine's memory must hold after each version of it.
#ifndef WSYNC_TESTS_FAULTS_FAULT_MODEL_H_
#define WSYNC_TESTS_FAULTS_FAULT_MODEL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/engine_memory.h"
#include "server/core/plan.h"
#include "tests/system/small_model.h"

namespace wsync::faults {

inline constexpr int64_t kBucketBytes = kMinBucketBytes;

// Random finite weights that depend on `seed` alone.
void FillWeights(std::byte* data, int64_t bytes, uint64_t seed);

// Names the content of an engine's memory: every byte of it.
std::string ContentName(const std::byte* data, int64_t bytes);

// Encodes the weights of a seed with the kernels, one piece after the other, and lays them out as EngineMemory does:
// nothing between the kernels and the answer is part of what the scenarios test.
class Oracle {
 public:
  explicit Oracle(std::vector<Tensor> tensors = SmallModel());
  const std::string& Content(uint64_t seed);
  int64_t buckets() const { return static_cast<int64_t>(plan_->buckets().size()); }

 private:
  std::shared_ptr<const Plan> plan_;
  std::map<uint64_t, std::string> known_;
};

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_FAULT_MODEL_H_
