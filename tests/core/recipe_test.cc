#include "server/core/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/recipe_notes.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// "fp8: <reason>" or "raw: <reason>" for the last of `tensors`.
std::string ChoiceOf(std::vector<Tensor> tensors, const RecipeRules& rules = {}) {
  const auto catalog = Catalog::Create(std::move(tensors));
  EXPECT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_TRUE(ValidateRules(rules).ok()) << ValidateRules(rules);
  const RecipeChoice choice = ChooseRecipes(*catalog, rules).back();
  return absl::StrCat(choice.recipe.fp8 ? "fp8: " : "raw: ", std::string(choice.reason));
}

std::string ChoiceOf(std::string name, const RecipeRules& rules = {}) {
  return ChoiceOf({{std::move(name), Dtype::kBF16, {256, 256}}}, rules);
}

// Not even an include rule makes FP8 of what is FP8 already, of whichever maker, or of MX exponents.
TEST(Dtypes, WhatIsQuantizedAlreadyIsNeverQuantizedAgain) {
  RecipeRules all;
  all.include = {"*"};
  const auto choice = [&all](Dtype dtype) {
    return ChoiceOf({{"model.layers.0.mlp.up_proj.weight", dtype, {256, 256}}}, all);
  };
  for (const Dtype dtype : {Dtype::kF8E4M3, Dtype::kF8E5M2, Dtype::kF8E4M3Fnuz, Dtype::kF8E5M2Fnuz}) {
    EXPECT_EQ(choice(dtype), "raw: already FP8") << DtypeName(dtype);
  }
  for (const Dtype dtype : {Dtype::kF8E8M0, Dtype::kC64, Dtype::kU8, Dtype::kF64}) {
    EXPECT_EQ(choice(dtype), "raw: not BF16, F16 or F32") << DtypeName(dtype);
  }
}

TEST(AllowInfinities, IsForNamedTensorsThatAreMovedAsTheyAre) {
  const auto catalog = Catalog::Create({{"model.mask", Dtype::kF32, {8, 8}},
                                        {"model.layers.0.mlp.up_proj.weight", Dtype::kBF16, {256, 256}},
                                        {"model.norm.weight", Dtype::kBF16, {256}}});
  ASSERT_TRUE(catalog.ok());
  RecipeRules rules;
  rules.allow_infinities = {"*.mask", "*.up_proj.weight", "*.nothing"};
  const auto choices = ChooseRecipes(*catalog, rules);
  EXPECT_TRUE(choices[0].recipe.allow_infinities);
  EXPECT_TRUE(choices[1].recipe.fp8);
  EXPECT_FALSE(choices[1].recipe.allow_infinities);
  EXPECT_FALSE(choices[2].recipe.allow_infinities);
  EXPECT_THAT(RecipeNotes(*catalog, rules, choices), ElementsAre(HasSubstr("'*.nothing' in 'allow_infinities'")));
  rules.allow_infinities = {"a["};
  EXPECT_THAT(std::string(ValidateRules(rules).message()), HasSubstr("'allow_infinities'"));
}

struct NamedChoice {
  const char* name;
  const char* choice;
};

class BuiltInRules : public ::testing::TestWithParam<NamedChoice> {};

TEST_P(BuiltInRules, ChooseByName) { EXPECT_EQ(ChoiceOf(GetParam().name), GetParam().choice) << GetParam().name; }

constexpr const char* kLinear = "fp8: linear weight";
INSTANTIATE_TEST_SUITE_P(Linear, BuiltInRules,
                         ::testing::ValuesIn<NamedChoice>({
                             {"model.layers.0.self_attn.q_proj.weight", kLinear},
                             {"model.layers.0.self_attn.o_proj.weight", kLinear},
                             {"model.layers.0.mlp.gate_proj.weight", kLinear},
                             {"model.layers.0.mlp.gate_up_proj.weight", kLinear},
                             {"model.layers.0.mlp.down_proj.weight", kLinear},
                             {"model.layers.0.mlp.experts.17.gate_proj.weight", kLinear},
                             {"model.layers.0.block_sparse_moe.experts.3.w1.weight", kLinear},
                             {"model.layers.0.self_attn.q_a_proj.weight", kLinear},
                             {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", kLinear},
                             {"model.layers.0.self_attn.kv_b_proj.weight", kLinear},
                             {"model.layers.3.mlp.shared_experts.up_proj.weight", kLinear},
                             {"mtp.layers.0.mlp.up_proj.weight", kLinear},
                             {"transformer.h.0.attn.c_attn.weight", kLinear},
                             {"model.layers.0.linear_attn.in_proj_qkvz.weight", kLinear},
                             {"model.layers.0.mlp.header.weight", kLinear},
                             {"decoder.block.0.layer.1.DenseReluDense.wi.weight", kLinear},
                             {"bert.encoder.layer.0.attention.output.dense.weight", kLinear},
                         }));
INSTANTIATE_TEST_SUITE_P(Kept, BuiltInRules,
                         ::testing::ValuesIn<NamedChoice>({
                             {"model.embed_tokens.weight", "raw: embedding"},
                             {"transformer.wte.weight", "raw: embedding"},
                             {"tok_embeddings.weight", "raw: embedding"},
                             {"word_embeddings.weight", "raw: embedding"},
                             {"bert.embeddings.position_embeddings.weight", "raw: embedding"},
                             {"model.layers.61.embed_tokens.weight", "raw: embedding"},
                             {"lm_head.weight", "raw: output head"},
                             {"language_model.lm_head.weight", "raw: output head"},
                             {"output.weight", "raw: output head"},
                             {"model.layers.61.shared_head.head.weight", "raw: output head"},
                             {"model.layers.61.eh_proj.weight", "raw: MTP projection"},
                             {"model.layers.61.enorm.weight", "raw: norm"},
                             {"model.layers.61.hnorm.weight", "raw: norm"},
                             {"model.layers.0.input_layernorm.weight", "raw: norm"},
                             {"model.layers.0.self_attn.q_norm.weight", "raw: norm"},
                             {"blocks.0.norm1.weight", "raw: norm"},
                             {"h.0.ln_1.weight", "raw: norm"},
                             {"normal_proj.weight", kLinear},
                             {"model.layers.0.mlp.gate.weight", "raw: router"},
                             {"model.layers.0.block_sparse_moe.gate.weight", "raw: router"},
                             {"model.layers.0.mlp.router.weight", "raw: router"},
                             {"model.layers.0.moe.router.layer.weight", "raw: router"},
                             {"model.layers.0.mlp.shared_expert_gate.weight", "raw: router"},
                             {"model.layers.0.mlp.gate.e_score_correction_bias", "raw: bias"},
                             {"model.layers.0.self_attn.q_proj.bias", "raw: bias"},
                             {"model.layers.0.mamba.A_log", "raw: not a .weight"},
                         }));
// What the official FP8 checkpoints of the families keep.
INSTANTIATE_TEST_SUITE_P(Families, BuiltInRules,
                         ::testing::ValuesIn<NamedChoice>({
                             {"visual.blocks.0.attn.qkv.weight", "raw: vision tower"},
                             {"model.visual.merger.mlp.0.weight", "raw: vision tower"},
                             {"vision_tower.encoder.layers.0.mlp.fc1.weight", "raw: vision tower"},
                             {"vision_model.encoder.layers.0.attn.qkv.weight", "raw: vision tower"},
                             {"multi_modal_projector.linear_1.weight", "raw: projector"},
                             {"mlp1.1.weight", "raw: projector"},
                             {"model.connector.modality_projection.proj.weight", "raw: projector"},
                             {"audio_tower.layers.0.self_attn.k_proj.weight", "raw: audio tower"},
                             {"thinker.audio_tower.conv_out.weight", "raw: audio tower"},
                             {"model.layers.0.linear_attn.in_proj_ba.weight", "raw: linear attention gate"},
                             {"model.layers.0.linear_attn.in_proj_a.weight", "raw: linear attention gate"},
                             {"model.layers.0.linear_attn.in_proj_b.weight", "raw: linear attention gate"},
                             {"mtp.fc.weight", "raw: MTP projection"},
                             {"model.mtp_layers.0.input_proj.weight", "raw: MTP projection"},
                             {"model.mtp_linear_proj.0.weight", "raw: MTP projection"},
                             {"embed_out.weight", "raw: output head"},
                             {"talker.codec_head.weight", "raw: output head"},
                             {"v_head.summary.weight", "raw: output head"},
                             {"language_model.output.weight", "raw: output head"},
                             {"lm_heads.1.weight", "raw: output head"},
                             {"score.weight", "raw: output head"},
                             {"classifier.dense.weight", "raw: output head"},
                             {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "raw: LoRA adapter"},
                             {"model.layers.0.mlp.up_proj.lora_B.default.weight", "raw: LoRA adapter"},
                             {"embeddings.patch_embeddings.projection.weight", "raw: embedding"},
                         }));

TEST(Recipe, OnlyMatricesAreQuantized) {
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kBF16, {256}}}), "raw: 1-D");
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kBF16, {}}}), "raw: scalar");
  EXPECT_EQ(ChoiceOf({{"mlp.experts.gate_up_proj", Dtype::kBF16, {8, 256, 256}}}), "raw: 3-D or more");
  EXPECT_EQ(ChoiceOf({{"layers.0.mixer.conv1d.weight", Dtype::kBF16, {64, 1, 4}}}), "raw: 3-D or more");
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kBF16, {0, 256}}}), "raw: empty");
}

TEST(Recipe, OnlyFloatsTheEncoderTakesAreQuantized) {
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kF16, {2, 2}}}), kLinear);
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kF32, {2, 2}}}), kLinear);
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kF64, {2, 2}}}), "raw: not BF16, F16 or F32");
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kI32, {2, 2}}}), "raw: not BF16, F16 or F32");
}

TEST(Recipe, QuantizedWeightsPassThroughWithTheirScalesWhateverIsIncluded) {
  RecipeRules everything;
  everything.include = {"*"};
  const Tensor weight{"a.proj.weight", Dtype::kF8E4M3, {256, 256}};
  for (const RecipeRules& rules : {RecipeRules{}, everything}) {
    EXPECT_EQ(ChoiceOf({weight}, rules), "raw: already FP8");
    for (const char* scale : {"a.proj.weight_scale_inv", "a.proj.weight_scale", "a.proj.input_scale"}) {
      EXPECT_EQ(ChoiceOf({weight, {scale, Dtype::kF32, {2, 2}}}, rules), "raw: scale of a quantized weight");
    }
  }
}

TEST(Recipe, IncludeForcesMatricesOnly) {
  RecipeRules rules;
  rules.include = {"*embed_tokens.weight", "*norm.weight", "*.A_log"};
  EXPECT_EQ(ChoiceOf("model.embed_tokens.weight", rules), "fp8: included by a rule");
  EXPECT_EQ(ChoiceOf("layers.0.A_log", rules), "fp8: included by a rule");
  EXPECT_EQ(ChoiceOf({{"model.norm.weight", Dtype::kBF16, {64}}}, rules), "raw: included by a rule, but not 2-D");
  EXPECT_EQ(ChoiceOf({{"embed_tokens.weight", Dtype::kI32, {64, 64}}}, rules), "raw: not BF16, F16 or F32");
}

TEST(Recipe, ExcludeWinsOverInclude) {
  RecipeRules rules;
  rules.include = rules.exclude = {"*.q_proj.weight"};
  EXPECT_EQ(ChoiceOf("layers.0.q_proj.weight", rules), "raw: excluded by a rule");
  EXPECT_EQ(ChoiceOf("layers.0.k_proj.weight", rules), kLinear);
}

TEST(Recipe, WhatStandsBesideALanguageModelIsNotQuantizedWhateverItsName) {
  const Tensor text{"language_model.model.layers.0.mlp.up_proj.weight", Dtype::kBF16, {256, 256}};
  EXPECT_EQ(ChoiceOf({text, {"encoder.layers.0.ff1.up_proj.weight", Dtype::kBF16, {256, 256}}}),
            "raw: beside the language model");
  EXPECT_EQ(ChoiceOf({text, {"mtp.layers.0.mlp.up_proj.weight", Dtype::kBF16, {256, 256}}}), kLinear);
  EXPECT_EQ(ChoiceOf({{"encoder.layers.0.ff1.up_proj.weight", Dtype::kBF16, {256, 256}}, text}), kLinear);
}

TEST(Recipe, WhatEnginesHoldUnquantizedIsKnownByTheTensorsAround) {
  const auto beside = [](std::vector<Tensor> others, const char* name, std::vector<int64_t> shape,
                         const RecipeRules& rules = {}) {
    others.push_back({name, Dtype::kBF16, std::move(shape)});
    return ChoiceOf(std::move(others), rules);
  };
  const Tensor packed{"resize.attn.in_proj_weight", Dtype::kBF16, {768, 256}};
  EXPECT_EQ(beside({packed}, "resize.attn.out_proj.weight", {256, 256}), "raw: part of nn.MultiheadAttention");
  EXPECT_EQ(beside({packed}, "resize.mlp.out_proj.weight", {256, 256}), kLinear);

  const Tensor decay{"layers.0.mamba.A_log", Dtype::kF32, {512, 16}};
  const Tensor x_proj{"layers.0.mamba.x_proj.weight", Dtype::kBF16, {48, 512}};
  for (const char* name : {"layers.0.mamba.in_proj.weight", "layers.0.mamba.dt_proj.weight"}) {
    EXPECT_EQ(beside({decay, x_proj}, name, {512, 256}), "raw: Mamba-1 mixer") << name;
  }
  EXPECT_EQ(beside({decay, x_proj}, "layers.0.feed_forward.up_proj.weight", {512, 256}), kLinear);

  EXPECT_EQ(beside({decay}, "layers.0.mamba.in_proj.weight", {584, 256}), "raw: fused projection, no multiple of 128");
  EXPECT_EQ(beside({decay}, "layers.0.mamba.in_proj.weight", {640, 256}), kLinear);
  RecipeRules channel;
  channel.granularity = Granularity::kChannel;
  EXPECT_EQ(beside({decay}, "layers.0.mamba.in_proj.weight", {584, 256}, channel), kLinear);
}

TEST(Recipe, TransposedWeightsAreKnownByTheirBias) {
  const Tensor wide{"h.0.mlp.c_fc.weight", Dtype::kBF16, {256, 1024}};
  const Tensor square{"h.0.attn.c_proj.weight", Dtype::kBF16, {256, 256}};
  EXPECT_EQ(ChoiceOf({wide, {"h.0.mlp.c_fc.bias", Dtype::kBF16, {1024}}, square}), "raw: transposed weight (Conv1D)");
  const Tensor usual{"h.0.mlp.c_fc.weight", Dtype::kBF16, {1024, 256}};  // StarCoder's
  EXPECT_EQ(ChoiceOf({usual, {"h.0.mlp.c_fc.bias", Dtype::kBF16, {1024}}, square}), kLinear);
}

TEST(Recipe, EveryStackCountsItsOwnLayersAndThoseForMtpAreNone) {
  std::vector<Tensor> tensors;
  for (const char* name : {"model.layers.0.up", "model.layers.1.up", "model.layers.2.up", "model.layers.2.eh_proj",
                           "model.layers.2.shared_head.head", "mtp.layers.0.up", "encoder.block.0.up",
                           "encoder.block.1.up", "transformer.h.0.up"}) {
    tensors.push_back({absl::StrCat(name, ".weight"), Dtype::kBF16, {256, 256}});
  }
  RecipeRules rules;
  rules.last_layers_bf16 = 1;
  std::vector<std::string_view> reasons;
  for (const RecipeChoice& choice : ChooseRecipes(*Catalog::Create(tensors), rules)) reasons.push_back(choice.reason);
  EXPECT_THAT(reasons,
              ElementsAre("linear weight", "in the last layers", "linear weight", "MTP projection", "output head",
                          "linear weight", "linear weight", "in the last layers", "in the last layers"));
}

TEST(Recipe, FirstAndLastLayersAreCountedFromTheCatalog) {
  std::vector<Tensor> tensors;
  for (int i : {0, 9, 1, 8, 10}) {
    tensors.push_back({absl::StrCat("model.layers.", i, ".up.weight"), Dtype::kBF16, {8, 8}});
  }
  tensors.push_back({"model.final.weight", Dtype::kBF16, {8, 8}});
  RecipeRules rules;
  rules.first_layers_bf16 = 1;
  rules.last_layers_bf16 = 2;
  std::vector<std::string_view> reasons;
  for (const RecipeChoice& choice : ChooseRecipes(*Catalog::Create(tensors), rules)) reasons.push_back(choice.reason);
  EXPECT_THAT(reasons, ::testing::ElementsAre("in the first layers", "in the last layers", "linear weight",
                                              "linear weight", "in the last layers", "linear weight"));
}

TEST(Recipe, ModulesToNotConvertStayAsTheyAreUnlessIncluded) {
  RecipeRules rules;
  rules.modules_to_not_convert = {"re:.*q_proj$", "layers.1"};
  EXPECT_EQ(ChoiceOf("model.layers.0.self_attn.q_proj.weight", rules), "raw: in modules_to_not_convert");
  EXPECT_EQ(ChoiceOf("model.layers.1.self_attn.k_proj.weight", rules), "raw: in modules_to_not_convert");
  EXPECT_EQ(ChoiceOf("model.layers.0.self_attn.k_proj.weight", rules), kLinear);
  rules.include = {"*.q_proj.*"};
  EXPECT_EQ(ChoiceOf("model.layers.0.self_attn.q_proj.weight", rules), "fp8: included by a rule");
}

TEST(Recipe, CarriesTheRequestedEncodingWhereFp8AndNothingElsewhere) {
  RecipeRules rules;
  rules.granularity = Granularity::kChannel;
  rules.scale_format = ScaleFormat::kPow2;
  rules.preset = Preset::kDeepGemm;
  const auto catalog = Catalog::Create({{"a.weight", Dtype::kBF16, {8, 8}}, {"norm.weight", Dtype::kBF16, {8}}});
  const auto choices = ChooseRecipes(*catalog, rules);
  EXPECT_EQ(choices[0].recipe, (Recipe{true, Granularity::kChannel, ScaleFormat::kPow2, Preset::kDeepGemm}));
  EXPECT_EQ(choices[1].recipe, Recipe{});
  rules.fp8 = false;
  EXPECT_EQ(ChooseRecipes(*catalog, rules)[0].recipe, Recipe{});
  EXPECT_EQ(ChooseRecipes(*catalog, rules)[0].reason, "FP8 is off");
}

TEST(Recipe, ChoiceStaysFastWithALongModuleList) {
  std::vector<Tensor> tensors;
  RecipeRules rules;
  for (int i = 0; i < 50'000; ++i) {
    tensors.push_back({absl::StrCat("model.layers.0.mlp.experts.", i, ".up_proj.weight"), Dtype::kBF16, {8, 8}});
    rules.modules_to_not_convert.push_back(absl::StrCat("model.layers.0.mlp.experts.", i, ".up_proj"));
  }
  const auto catalog = Catalog::Create(std::move(tensors));
  const auto begin = std::chrono::steady_clock::now();
  const auto choices = ChooseRecipes(*catalog, rules);
  // Looking every entry up for every tensor would be 2.5e9 comparisons.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(3));
  EXPECT_EQ(choices.back().reason, "in modules_to_not_convert");
}

TEST(Recipe, ValidateNamesTheRule) {
  const auto error = [](auto change) {
    RecipeRules rules;
    change(rules);
    return std::string(ValidateRules(rules).message());
  };
  EXPECT_TRUE(ValidateRules({}).ok());
  EXPECT_THAT(error([](RecipeRules& r) { r.include = {"a[bc"}; }), HasSubstr("glob 'a[bc' in 'include'"));
  EXPECT_THAT(error([](RecipeRules& r) { r.exclude = {"*", "[]"}; }), HasSubstr("glob '[]' in 'exclude'"));
  EXPECT_THAT(error([](RecipeRules& r) { r.exclude = {""}; }), HasSubstr("empty glob in 'exclude'"));
  EXPECT_THAT(error([](RecipeRules& r) { r.modules_to_not_convert = {"re:(?!a)"}; }), HasSubstr("'re:(?!a)'"));
  EXPECT_THAT(error([](RecipeRules& r) { r.modules_to_not_convert = {""}; }), HasSubstr("modules_to_not_convert"));
  EXPECT_THAT(error([](RecipeRules& r) { r.last_layers_bf16 = -1; }), HasSubstr("'last_layers_bf16' (-1)"));
  EXPECT_THAT(error([](RecipeRules& r) { r.preset = static_cast<Preset>(9); }), HasSubstr("unknown"));
}

TEST(Recipe, ScaleNamesAreThoseThatLoadersWant) {
  EXPECT_EQ(ScaleName("a.weight", Granularity::kBlock), "a.weight_scale_inv");
  EXPECT_EQ(ScaleName("a.weight", Granularity::kChannel), "a.weight_scale");
  EXPECT_EQ(ScaleName("a.weight", Granularity::kTensor), "a.weight_scale");
}

}  // namespace
}  // namespace wsync
