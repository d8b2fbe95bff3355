// Plans of real models, against their published parameter counts.
#include "client/checkpoint/model_shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>

#include "tests/core/plan_testing.h"

namespace wsync {
namespace {

struct Published {
  const char* model;
  size_t tensors;
  int64_t params;
  int64_t quantized_tensors;
  int64_t quantized_params;
  double wire_gb;
};
void PrintTo(const Published& published, std::ostream* out) { *out << published.model; }

class ModelPlan : public ::testing::TestWithParam<Published> {};

TEST_P(ModelPlan, HasThePublishedCountsAndBytes) {
  auto tensors = ModelTensors(GetParam().model);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  const auto plan = MakePlan(*std::move(tensors), {}, kDefaultBucketBytes);
  int64_t params = 0, quantized_params = 0;
  for (size_t i = 0; i < plan->recipes().size(); ++i) {
    const Tensor& tensor = plan->catalog().tensors()[i];
    const int64_t count = BytesOf(tensor) / DtypeBytes(tensor.dtype);
    params += count;
    if (plan->recipes()[i].recipe.fp8) quantized_params += count;
  }
  EXPECT_EQ(plan->catalog().tensors().size(), GetParam().tensors);
  EXPECT_EQ(params, GetParam().params);
  EXPECT_EQ(plan->quantized_tensors(), GetParam().quantized_tensors);
  EXPECT_EQ(quantized_params, GetParam().quantized_params);
  EXPECT_NEAR(static_cast<double>(plan->payload_bytes()) / 1e9, GetParam().wire_gb, 0.005 * GetParam().wire_gb);
  // Padding and digests are small change: 128-byte alignment against pieces of megabytes.
  EXPECT_LT(plan->image_bytes(), plan->payload_bytes() + plan->payload_bytes() / 1000);
}

INSTANTIATE_TEST_SUITE_P(
    Known, ModelPlan,
    ::testing::Values(Published{"qwen2.5-0.5b", 290, 494'032'768, 168, 357'826'560, 0.6303},
                      Published{"qwen2.5-7b", 339, 7'615'616'512, 196, 6'525'288'448, 8.71},
                      Published{"qwen3-8b", 399, 8'190'735'360, 252, 6'945'767'424, 9.437},
                      Published{"qwen3-30b-a3b", 18'867, 30'532'122'624, 18'624, 29'896'998'912, 31.2},
                      Published{"deepseek-v3", 45'395, 671'026'419'200, 45'032, 669'065'609'216, 673.1}));

TEST(ModelShapes, EveryKnownModelHasFactsAndTensors) {
  EXPECT_THAT(KnownModels(), ::testing::Contains("qwen3-8b"));
  for (const std::string& model : KnownModels()) {
    EXPECT_GT(FactsOf(model)->vocab, 0) << model;
    EXPECT_TRUE(ModelTensors(model).ok()) << model;
  }
}

TEST(ModelShapes, AnUnknownModelIsRefusedWithTheKnownOnes) {
  const auto tensors = ModelTensors("gpt-2");
  EXPECT_EQ(tensors.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(tensors.status().message()), ::testing::HasSubstr("qwen2.5-0.5b"));
}

}  // namespace
}  // namespace wsync
