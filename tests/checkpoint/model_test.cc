#include "client/checkpoint/model.h"

#include <gmock/gmock.h>

#include "client/checkpoint/offline_quantizer.h"
#include "client/checkpoint/source_scheme.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ModelTest : public testing::Test {
 protected:
  void Write(const std::vector<TestTensor>& tensors, const std::string& config) {
    WriteSafetensors(directory_ / kSingleFileName, tensors);
    WriteText(directory_ / kConfigFileName, config);
    checkpoint_ = *Checkpoint::Open(directory_.path());
  }
  absl::StatusOr<std::shared_ptr<const Plan>> MakePlan(const RecipeRules& rules = {}) {
    return PlanOf(*checkpoint_, ModelOf(*checkpoint_), rules, kMinBucketBytes);
  }
  absl::StatusOr<QuantizeReport> Quantize() {
    return QuantizeCheckpoint(*checkpoint_, out_.path() + "/fp8", QuantizeOptions{});
  }
  const TemporaryDirectory directory_, out_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TestTensor Packed(const std::string& name, Dtype dtype, std::vector<int64_t> shape) {
  const Tensor tensor{name, dtype, std::move(shape)};
  return {tensor, std::vector<std::byte>(BytesOf(tensor), std::byte{1})};
}

// gpt-oss as published, as far as it matters.
TEST_F(ModelTest, GlobsOfTheListLeaveNothingToQuantizeAndTheConfigAsItIs) {
  const std::string config =
      R"({"model_type":"gpt_oss","quantization_config":{"quant_method":"mxfp4","modules_to_not_convert":
          ["model.layers.*.self_attn","model.layers.*.mlp.router","model.embed_tokens","lm_head"]}})";
  Write({Bf16Tensor("model.layers.0.self_attn.q_proj.weight", {128, 128}, 1),
         Bf16Tensor("model.layers.0.mlp.router.weight", {2, 128}, 2),
         Packed("model.layers.0.mlp.experts.down_proj_blocks", Dtype::kU8, {2, 128, 4, 16}),
         Packed("model.layers.0.mlp.experts.down_proj_scales", Dtype::kU8, {2, 128, 4})},
        config);
  const auto plan = MakePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->quantized_tensors(), 0);
  ASSERT_TRUE(Quantize().ok());
  EXPECT_EQ((*Checkpoint::Open(out_.path() + "/fp8"))->config(), checkpoint_->config());
}

// Kimi-K2.5's, whose scheme is in text_config.
TEST_F(ModelTest, SchemesThatWouldBeMixedAreRefusedByPlanAndQuantize) {
  const std::vector<TestTensor> tensors = {
      Bf16Tensor("language_model.model.layers.1.self_attn.o_proj.weight", {128, 128}, 1),
      Bf16Tensor("language_model.model.layers.1.mlp.up_proj.weight", {128, 128}, 2),
      Packed("language_model.model.layers.1.mlp.experts.0.up_proj.weight_packed", Dtype::kI32, {128, 16}),
      Packed("language_model.model.layers.1.mlp.experts.0.up_proj.weight_scale", Dtype::kBF16, {128, 4})};
  const std::string config = R"({"text_config":{"quantization_config":{"quant_method":"compressed-tensors",
      "format":"pack-quantized","ignore":["re:.*self_attn.*"]}}})";
  Write(tensors, config);
  for (const absl::Status& status : {MakePlan().status(), Quantize().status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("text_config.quantization_config.quant_method"),
                                                     HasSubstr("compressed-tensors"), HasSubstr("\"fp8\"")));
  }
  RecipeRules rules;
  rules.exclude = {"*.mlp.up_proj.*"};
  const auto plan = MakePlan(rules);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->quantized_tensors(), 0) << "self_attn is in the list";

  Write(tensors, "{}");  // the tensors alone tell, too
  for (const absl::Status& status : {MakePlan().status(), Quantize().status()}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("'language_model.model.layers.1.mlp.experts.0.up_proj."
                                                         "weight_packed' is quantized already: I32"));
  }
}

TEST_F(ModelTest, StackedExpertsAreQuantizedOneByOne) {
  Write({Bf16Tensor("model.layers.0.mlp.experts.gate_up_proj", {2, 256, 256}, 1),
         Bf16Tensor("model.layers.0.mlp.experts.down_proj", {2, 256, 128}, 2)},
        R"({"model_type":"qwen3_5_moe_text","num_experts":2,"hidden_size":256,"moe_intermediate_size":128})");
  const auto plan = MakePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->quantized_tensors(), 6);
  ASSERT_TRUE(Quantize().ok());
  const auto out = *Checkpoint::Open(out_.path() + "/fp8");
  ASSERT_EQ(out->tensors().size(), 12u);
  EXPECT_EQ(out->tensors()[0].tensor,
            (Tensor{"model.layers.0.mlp.experts.0.down_proj.weight", Dtype::kF8E4M3, {256, 128}}));
  EXPECT_THAT(ModulesToNotConvert(out->config()), ElementsAre("lm_head"));
}

TEST_F(ModelTest, StacksOfUnknownLayoutStayAndAreListed) {
  Write({Bf16Tensor("model.layers.0.feed_forward.experts.gate_up_proj", {2, 256, 256}, 1),
         Bf16Tensor("model.layers.0.self_attn.q_proj.weight", {128, 128}, 3)},
        R"({"model_type":"llama4_text","num_local_experts":2,"hidden_size":256,"intermediate_size":128})");
  ASSERT_TRUE(Quantize().ok());
  const auto out = *Checkpoint::Open(out_.path() + "/fp8");
  EXPECT_THAT(ModulesToNotConvert(out->config()), ElementsAre("lm_head", "model.layers.0.feed_forward.experts"));
}

}  // namespace
}  // namespace wsync
