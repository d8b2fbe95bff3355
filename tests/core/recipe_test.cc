#include "server/core/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

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
  EXPECT_THAT(GlobsWithoutMatch(*catalog, rules), ElementsAre(HasSubstr("'*.nothing' in 'allow_infinities'")));
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
                             {"visual.blocks.0.attn.qkv.weight", kLinear},
                             {"vision_tower.encoder.layers.0.mlp.fc1.weight", kLinear},
                             {"visual.merger.mlp.0.weight", kLinear},
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

TEST(Recipe, OnlyMatricesAreQuantized) {
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kBF16, {256}}}), "raw: 1-D");
  EXPECT_EQ(ChoiceOf({{"a.proj.weight", Dtype::kBF16, {}}}), "raw: scalar");
  EXPECT_EQ(ChoiceOf({{"mlp.experts.gate_up_proj", Dtype::kBF16, {8, 256, 256}}}), "raw: 3-D or more");
  EXPECT_EQ(ChoiceOf({{"visual.patch_embed.proj.weight", Dtype::kBF16, {64, 3, 2, 14, 14}}}), "raw: 3-D or more");
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

TEST(Recipe, ModulesToNotConvertMatchRunsOfWholeComponents) {
  const auto choice = [](const char* entry) {
    RecipeRules rules;
    rules.modules_to_not_convert = {"unrelated.module.of.many.parts", entry};
    return ChoiceOf("model.layers.1.self_attn.q_proj.weight", rules);
  };
  for (const char* entry : {"model", "model.layers.1", "layers.1.", "self_attn", "q_proj", "self_attn.q_proj",
                            "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj.weight"}) {
    EXPECT_EQ(choice(entry), "raw: in modules_to_not_convert") << entry;
  }
  for (const char* entry : {"mode", "layers.11", "attn", "q_proj.bias", "model.layers.1.self_attn.q_proj.weight.x"}) {
    EXPECT_EQ(choice(entry), kLinear) << entry;
  }
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
  EXPECT_THAT(error([](RecipeRules& r) { r.modules_to_not_convert = {"re:.*mlp"}; }), HasSubstr("'re:.*mlp'"));
  EXPECT_THAT(error([](RecipeRules& r) { r.modules_to_not_convert = {""}; }), HasSubstr("modules_to_not_convert"));
  EXPECT_THAT(error([](RecipeRules& r) { r.last_layers_bf16 = -1; }), HasSubstr("'last_layers_bf16' (-1)"));
  EXPECT_THAT(error([](RecipeRules& r) { r.preset = static_cast<Preset>(9); }), HasSubstr("unknown"));
}

TEST(Recipe, GlobsThatMatchNothingAreNamed) {
  const auto catalog = Catalog::Create({{"model.layers.0.mlp.up_proj.weight", Dtype::kBF16, {256, 256}}});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  RecipeRules rules;
  rules.include = {"*.up_proj.*", "*.layer.0.*"};
  rules.exclude = {"model.layers.0", "*"};
  EXPECT_THAT(GlobsWithoutMatch(*catalog, rules),
              ElementsAre(AllOf(HasSubstr("'*.layer.0.*' in 'include'"), HasSubstr("up_proj.weight")),
                          HasSubstr("'model.layers.0' in 'exclude'")));
  EXPECT_THAT(GlobsWithoutMatch(*catalog, {}), IsEmpty());
}

TEST(Glob, MatchesAsAShellDoes) {
  EXPECT_TRUE(GlobMatch("model.layers.*.weight", "model.layers.0.mlp.up.weight"));
  EXPECT_TRUE(GlobMatch("*", ""));
  EXPECT_TRUE(GlobMatch("a?c", "abc"));
  EXPECT_TRUE(GlobMatch("layers.[0-3].*", "layers.2.x"));
  EXPECT_TRUE(GlobMatch("[!0-3]", "4"));
  EXPECT_TRUE(GlobMatch("[]x]", "]"));
  EXPECT_TRUE(GlobMatch("a**b", "ab"));
  EXPECT_TRUE(GlobMatch("*ab*ab", "aabxabab"));
  EXPECT_FALSE(GlobMatch("a?c", "ac"));
  EXPECT_FALSE(GlobMatch("layers.[0-3].*", "layers.4.x"));
  EXPECT_FALSE(GlobMatch("[!0-3]", "2"));
  EXPECT_FALSE(GlobMatch("model.*", "xmodel.a"));
  EXPECT_FALSE(GlobMatch("", "a"));
  EXPECT_FALSE(GlobMatch("*.weight", "a.weight_scale"));
}

TEST(Glob, ManyStarsStayCheap) {
  const std::string text(500, 'a');
  std::string glob;
  for (int i = 0; i < 100; ++i) glob += "a*";
  EXPECT_FALSE(GlobMatch(glob + "b", text));  // exponential for a matcher that tries every star
  EXPECT_TRUE(GlobMatch(glob, text));
}

TEST(Recipe, ScaleNamesAreThoseThatLoadersWant) {
  EXPECT_EQ(ScaleName("a.weight", Granularity::kBlock), "a.weight_scale_inv");
  EXPECT_EQ(ScaleName("a.weight", Granularity::kChannel), "a.weight_scale");
  EXPECT_EQ(ScaleName("a.weight", Granularity::kTensor), "a.weight_scale");
}

}  // namespace
}  // namespace wsync
