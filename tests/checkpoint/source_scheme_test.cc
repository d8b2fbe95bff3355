#include "client/checkpoint/source_scheme.h"

#include <gmock/gmock.h>

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

OrderedJson Config(const char* scheme) {
  return OrderedJson{{"model_type", "x"}, {"quantization_config", OrderedJson::parse(scheme)}};
}

constexpr char kBlock[] = R"({"quant_method": "fp8", "weight_block_size": [128, 128]})";
constexpr char kFloat[] = R"({"quant_method": "compressed-tensors", "format": "float-quantized"})";
constexpr char kPacked[] = R"({"quant_method": "compressed-tensors", "format": "pack-quantized"})";

TEST(SourceScheme, ListsOfEveryNameAreReadOnce) {
  const OrderedJson config = Config(R"({"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", 7, ""],
      "ignored_layers": ["lm_head"], "ignore": ["re:.*gate$", "head"], "exclude_modules": ["model.layers.*.attn"]})");
  EXPECT_THAT(ModulesToNotConvert(config),
              ElementsAre("head", "lm_head", "model.layers.*.attn", "model.layers.0.mlp.gate", "re:.*gate$"));
  EXPECT_THAT(ModulesToNotConvert(std::nullopt), IsEmpty());
}

TEST(SourceScheme, SchemesOfSubConfigsCount) {
  OrderedJson config = {{"thinker_config", {{"text_config", {{"quantization_config", OrderedJson::parse(kPacked)}}}}},
                        {"compression_config", OrderedJson::parse(R"({"ignore": ["a"]})")}};
  config["thinker_config"]["text_config"]["quantization_config"]["ignore"] = {"b"};
  EXPECT_THAT(ModulesToNotConvert(config), ElementsAre("a", "b"));
  ASSERT_EQ(SourceSchemes(config).size(), 2u);
  EXPECT_EQ(SourceSchemes(config)[0].where, "thinker_config.text_config.quantization_config");
  EXPECT_EQ(WithoutSourceSchemes(config).dump(), R"({"thinker_config":{"text_config":{}}})");
}

TEST(SourceScheme, OnlyWhatWsyncWritesMayStandBesideMore) {
  const auto message = [](const OrderedJson& config, Granularity granularity) {
    const absl::Status status = CheckSourceSchemes(config, granularity, "dir");
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message(Config(kBlock), Granularity::kBlock), "");
  EXPECT_EQ(message(Config(kFloat), Granularity::kChannel), "");
  EXPECT_THAT(message(Config(kFloat), Granularity::kBlock),
              AllOf(HasSubstr("'dir'"), HasSubstr("quantization_config.quant_method \"compressed-tensors\""),
                    HasSubstr("\"fp8\""), HasSubstr("--exclude"), HasSubstr("recipe.fp8: false")));
  EXPECT_THAT(message(Config(kBlock), Granularity::kTensor), HasSubstr("\"compressed-tensors\""));
  EXPECT_THAT(message(Config(R"({"quant_method": "fp8"})"), Granularity::kBlock),
              HasSubstr("weight_block_size not given"));
  EXPECT_THAT(message({{"text_config", Config(kPacked)}}, Granularity::kChannel),
              AllOf(HasSubstr("text_config.quantization_config.format \"pack-quantized\"")));
}

TEST(SourceScheme, WithoutAGranularityWhatWsyncWritesForNoneIsRefused) {
  for (const char* ours : {kBlock, kFloat}) EXPECT_TRUE(CheckSourceSchemes(Config(ours), "dir").ok()) << ours;
  for (const char* other : {kPacked, R"({"quant_method": "awq"})", R"({"quant_method": "mxfp4"})", "{}"}) {
    EXPECT_EQ(CheckSourceSchemes(Config(other), "dir").code(), absl::StatusCode::kInvalidArgument) << other;
  }
  EXPECT_TRUE(CheckSourceSchemes(OrderedJson::object(), "dir").ok());
}

}  // namespace
}  // namespace wsync
