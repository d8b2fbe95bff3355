// What running agents take at most, against what `wsync plan` says they will.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "client/cli/bench_sync.h"

namespace wsync::cli {
namespace {

constexpr double kTolerance = 0.1;
constexpr int64_t kMebi = int64_t{1} << 20;

// 512 MiB of BF16 in 256 matrices, half of that on the wire.
std::vector<Tensor> QuarterGibibyteOfCodes() {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 256; ++i) {
    tensors.push_back({absl::StrCat("model.layers.", i, ".mlp.up_proj.weight"), Dtype::kBF16, {1024, 1024}});
  }
  return tensors;
}

struct Modes {
  const char* source;
  const char* sink;
};

class PeakMemory : public ::testing::TestWithParam<Modes> {};

TEST_P(PeakMemory, OfEveryAgentIsWithinATenthOfThePlan) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have memory of their own";
#endif
  SyncOptions options;
  options.name = "memory test";
  options.tensors = QuarterGibibyteOfCodes();
  options.syncs = 3;
  options.bucket_bytes = 64 * kMebi;
  options.trainer_flags = {{"transfer.source_mode", GetParam().source}};
  options.rollout_flags = {{"transfer.sink_mode", GetParam().sink}};
  const auto result = MeasureSync(options);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->memory.size(), 3u);
  for (const AgentMemory& memory : result->memory) {
    const auto predicted = static_cast<double>(memory.predicted_bytes);
    EXPECT_NEAR(static_cast<double>(memory.peak_bytes), predicted, kTolerance * predicted) << memory.agent;
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, PeakMemory, ::testing::Values(Modes{"full", "staged"}, Modes{"ring", "in_place"}),
                         [](const auto& mode) { return absl::StrCat(mode.param.source, "_", mode.param.sink); });

}  // namespace
}  // namespace wsync::cli
