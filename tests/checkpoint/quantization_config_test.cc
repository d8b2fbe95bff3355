#include "client/checkpoint/quantization_config.h"

#include <gmock/gmock.h>

namespace wsync {
namespace {

using ::testing::ElementsAre;

const std::vector<Tensor> kWritten = {
    {"lm_head.weight", Dtype::kBF16, {256, 128}},
    {"model.embed_tokens.weight", Dtype::kBF16, {256, 128}},
    {"model.layers.0.input_layernorm.weight", Dtype::kBF16, {128}},
    {"model.layers.0.mlp.experts.0.down_proj.weight", Dtype::kF8E4M3, {128, 128}},
    {"model.layers.0.mlp.experts.0.down_proj.weight_scale_inv", Dtype::kF32, {1, 1}},
    {"model.layers.0.mlp.gate.weight", Dtype::kBF16, {8, 128}},
    {"model.layers.1.self_attn.q_proj.bias", Dtype::kBF16, {128}},
    {"model.layers.1.self_attn.q_proj.weight", Dtype::kBF16, {128, 128}},
};

TEST(QuantizationConfig, ListsLinearModulesThatAreNotFp8ByFullName) {
  EXPECT_THAT(HighPrecisionModules(kWritten),
              ElementsAre("lm_head", "model.layers.0.mlp.gate", "model.layers.1.self_attn.q_proj"));
}

TEST(QuantizationConfig, ListsTheHeadOfTiedEmbeddings) {
  const std::vector<Tensor> tied = {{"model.embed_tokens.weight", Dtype::kBF16, {256, 128}}};
  EXPECT_THAT(HighPrecisionModules(tied), ElementsAre("lm_head"));
  const std::vector<Tensor> quantized_head = {{"lm_head.weight", Dtype::kF8E4M3, {256, 128}}};
  EXPECT_THAT(HighPrecisionModules(quantized_head), ElementsAre());
}

TEST(QuantizationConfig, BlockScalesAreFp8WithBothLists) {
  const OrderedJson expected = OrderedJson::parse(R"({
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"], "ignored_layers": ["lm_head"]})");
  EXPECT_EQ(QuantizationConfig(Granularity::kBlock, false, {"lm_head"}), expected);
}

TEST(QuantizationConfig, OnlyPowerOfTwoScalesAreCalledUe8m0) {
  EXPECT_EQ(QuantizationConfig(Granularity::kBlock, true, {}).value("scale_fmt", ""), "ue8m0");
  EXPECT_FALSE(QuantizationConfig(Granularity::kBlock, false, {}).contains("scale_fmt"));
}

TEST(QuantizationConfig, EmptyListsStayLists) {
  EXPECT_TRUE(QuantizationConfig(Granularity::kBlock, false, {})["ignored_layers"].is_array());
  EXPECT_TRUE(QuantizationConfig(Granularity::kChannel, false, {})["ignore"].is_array());
}

TEST(QuantizationConfig, ChannelAndTensorScalesAreCompressedTensors) {
  for (const auto& [granularity, weights, activations] :
       {std::tuple(Granularity::kChannel, "channel", "token"), std::tuple(Granularity::kTensor, "tensor", "tensor")}) {
    OrderedJson expected = OrderedJson::parse(R"({
      "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
      "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "symmetric": true, "strategy": "", "dynamic": false},
        "input_activations": {"num_bits": 8, "type": "float", "symmetric": true, "strategy": "", "dynamic": true}}},
      "ignore": ["lm_head"]})");
    expected["config_groups"]["group_0"]["weights"]["strategy"] = weights;
    expected["config_groups"]["group_0"]["input_activations"]["strategy"] = activations;
    EXPECT_EQ(QuantizationConfig(granularity, false, {"lm_head"}), expected);
  }
}

TEST(QuantizationConfig, TheRestOfTheConfigStaysAsItIs) {
  const OrderedJson config = OrderedJson::parse(
      R"({"torch_dtype":"bfloat16","rms_norm_eps":1e-06,"quantization_config":{"old":1},"architectures":["A"]})");
  const OrderedJson made = WithQuantizationConfig(config, Granularity::kBlock, false, kWritten);
  OrderedJson expected = config;
  expected["quantization_config"] = QuantizationConfig(Granularity::kBlock, false, HighPrecisionModules(kWritten));
  EXPECT_EQ(made.dump(), expected.dump());
}

}  // namespace
}  // namespace wsync
