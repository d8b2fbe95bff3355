#include "client/checkpoint/quantization_config.h"

#include <gmock/gmock.h>

#include <utility>

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

std::vector<std::string> Listed(std::vector<Tensor> written, const char* config = "{}") {
  return HighPrecisionModules(written, OrderedJson::parse(config));
}

TEST(QuantizationConfig, ListsModulesThatAreNotFp8ByFullName) {
  EXPECT_THAT(Listed(kWritten), ElementsAre("lm_head", "model.embed_tokens", "model.layers.0.mlp.gate",
                                            "model.layers.1.self_attn.q_proj"));
}

TEST(QuantizationConfig, ListsConvolutionsAndWeightsOfModulesThatAreNoLinearOnes) {
  EXPECT_THAT(Listed({{"lm_head.weight", Dtype::kBF16, {8, 8}},
                      {"l.0.mixer.conv1d.weight", Dtype::kBF16, {8, 1, 4}},
                      {"l.0.mixer.A_log", Dtype::kF32, {8, 4}},
                      {"l.0.mixer.in_proj.weight", Dtype::kF8E4M3, {8, 8}},
                      {"l.1.mixer.A_log", Dtype::kF32, {8, 4}},
                      {"visual.patch_embed.proj.weight", Dtype::kBF16, {8, 3, 2, 2, 2}},
                      {"visual.attn.in_proj_weight", Dtype::kBF16, {24, 8}},
                      {"visual.attn.out_proj.weight", Dtype::kBF16, {8, 8}},
                      {"visual.patch_embedding.weight", Dtype::kBF16, {8, 8}},
                      {"cls_token", Dtype::kBF16, {1, 1, 8}}}),
              ElementsAre("lm_head", "l.0.mixer.conv1d", "l.1.mixer", "visual.patch_embed.proj", "visual.attn",
                          "visual.attn.out_proj", "visual.patch_embedding"));
}

TEST(QuantizationConfig, ListsTheModuleThatLoadersMakeOfExpertsUnlessAnyIsFp8) {
  const Tensor head{"lm_head.weight", Dtype::kBF16, {8, 8}};
  EXPECT_THAT(Listed({head, {"l.0.mlp.experts.gate_up_proj", Dtype::kBF16, {4, 8, 8}}}),
              ElementsAre("lm_head", "l.0.mlp.experts"));
  EXPECT_THAT(Listed({head, {"l.0.mlp.experts.0.up_proj.weight", Dtype::kBF16, {8, 8}}}),
              ElementsAre("lm_head", "l.0.mlp.experts", "l.0.mlp.experts.0.up_proj"));
  EXPECT_THAT(Listed({head,
                      {"l.0.mlp.experts.0.up_proj.weight", Dtype::kBF16, {8, 8}},
                      {"l.0.mlp.experts.1.up_proj.weight", Dtype::kF8E4M3, {8, 8}}}),
              ElementsAre("lm_head", "l.0.mlp.experts.0.up_proj"));
  EXPECT_THAT(Listed({head, {"l.0.moe.input_linear.weight", Dtype::kBF16, {4, 8, 8}}}),
              ElementsAre("lm_head", "l.0.moe.experts", "l.0.moe.input_linear"));
}

TEST(QuantizationConfig, ListsTheHeadOfTiedEmbeddings) {
  const Tensor embedding{"model.embed_tokens.weight", Dtype::kBF16, {256, 128}};
  EXPECT_THAT(Listed({embedding}), ElementsAre("model.embed_tokens", "lm_head"));
  EXPECT_THAT(Listed({{"lm_head.weight", Dtype::kF8E4M3, {256, 128}}}), ElementsAre());
  EXPECT_THAT(Listed({{"language_model.lm_head.weight", Dtype::kF8E4M3, {256, 128}}}), ElementsAre());
  EXPECT_THAT(Listed({embedding}, R"({"model_type": "whisper"})"),
              ElementsAre("model.embed_tokens", "lm_head", "proj_out"));
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

TEST(QuantizationConfig, CompressedTensorsListTheFirstExpertOfEachModuleOfExperts) {
  EXPECT_EQ(QuantizationConfig(Granularity::kChannel, false, {"l.0.mlp.experts"})["ignore"].dump(),
            R"(["l.0.mlp.experts","l.0.mlp.experts.0.gate_proj","l.0.mlp.experts.0.up_proj",)"
            R"("l.0.mlp.experts.0.down_proj","l.0.mlp.experts.0.w1","l.0.mlp.experts.0.w2","l.0.mlp.experts.0.w3"])");
}

std::vector<WrittenTensor> Written(bool encoded, std::vector<float> passed_scales) {
  static std::vector<float> scales;
  scales = std::move(passed_scales);
  const Tensor weight{"a.weight", Dtype::kF8E4M3, {128, 128}}, scale{"a.weight_scale_inv", Dtype::kF32, {1, 2}};
  std::vector<WrittenTensor> written = {{weight, false, reinterpret_cast<const std::byte*>(scales.data())},
                                        {scale, false, reinterpret_cast<const std::byte*>(scales.data())}};
  if (encoded) written.push_back({{"b.weight", Dtype::kF8E4M3, {128, 128}}, true, nullptr});
  return written;
}

TEST(WrittenConfig, StaysAsItIsWhereNothingWasQuantized) {
  const OrderedJson config = OrderedJson::parse(R"({"quantization_config": {"quant_method": "compressed-tensors"}})");
  EXPECT_EQ(WrittenConfig(config, Granularity::kBlock, ScaleFormat::kPow2, Written(false, {1, 2})), config);
  EXPECT_EQ(WrittenConfig(std::nullopt, Granularity::kBlock, ScaleFormat::kPow2, Written(false, {1, 2})), std::nullopt);
}

TEST(WrittenConfig, DescribesTheTensorsInPlaceOfWhatTheSourceSaid) {
  const OrderedJson config = OrderedJson::parse(
      R"({"torch_dtype":"bfloat16","rms_norm_eps":1e-06,"quantization_config":{"old":1},"architectures":["A"],
          "text_config":{"quantization_config":{"old":2},"hidden_size":8}})");
  OrderedJson expected = OrderedJson::parse(
      R"({"torch_dtype":"bfloat16","rms_norm_eps":1e-06,"architectures":["A"],"text_config":{"hidden_size":8}})");
  expected["quantization_config"] = QuantizationConfig(Granularity::kBlock, false, {"lm_head"});
  const auto made = WrittenConfig(config, Granularity::kBlock, ScaleFormat::kFp32, Written(true, {1, 2}));
  EXPECT_EQ(made->dump(), expected.dump());
}

TEST(WrittenConfig, ScalesAreUe8m0OnlyIfEveryOneIsAPowerOfTwo) {
  const auto scale_fmt = [](ScaleFormat format, std::vector<float> passed) {
    return (*WrittenConfig(std::nullopt, Granularity::kBlock, format,
                           Written(true, std::move(passed))))["quantization_config"]
        .value("scale_fmt", "");
  };
  EXPECT_EQ(scale_fmt(ScaleFormat::kPow2, {0.25f, 1024}), "ue8m0");
  EXPECT_EQ(scale_fmt(ScaleFormat::kFp32, {0.25f, 1024}), "");
  for (const float other : {0.75f, 0.f, -1.f, 1e-40f})
    EXPECT_EQ(scale_fmt(ScaleFormat::kPow2, {1, other}), "") << other;
}

}  // namespace
}  // namespace wsync
