#include "server/core/scheme.h"

#include <gmock/gmock.h>

#include "server/core/recipe_notes.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const Tensor kPlain{"model.layers.0.up_proj.weight", Dtype::kBF16, {256, 384}};

absl::Status Check(std::vector<Tensor> tensors, const RecipeRules& rules = {}) {
  const auto catalog = Catalog::Create(std::move(tensors));
  EXPECT_TRUE(catalog.ok()) << catalog.status();
  return CheckOneScheme(*catalog, rules, ChooseRecipes(*catalog, rules));
}

RecipeRules Rules(Granularity granularity) {
  RecipeRules rules;
  rules.granularity = granularity;
  return rules;
}

Tensor Codes() { return {"a.down_proj.weight", Dtype::kF8E4M3, {200, 384}}; }

TEST(Scheme, WhatIsQuantizedAsAskedMayStandBesideMore) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    EXPECT_TRUE(Check({kPlain, Codes(), {"a.down_proj.weight_scale_inv", dtype, {2, 3}}}).ok());
  }
  const auto channel = Rules(Granularity::kChannel), tensor = Rules(Granularity::kTensor);
  EXPECT_TRUE(Check({kPlain, Codes(), {"a.down_proj.weight_scale", Dtype::kF32, {200, 1}}}, channel).ok());
  EXPECT_TRUE(Check({kPlain, Codes(), {"a.down_proj.weight_scale", Dtype::kF32, {1}}}, tensor).ok());
  EXPECT_TRUE(Check({kPlain, Codes(), {"a.down_proj.weight_scale", Dtype::kF32, {}}}, tensor).ok());
}

TEST(Scheme, AnyOtherSchemeIsRefusedWhereMoreWouldBeQuantized) {
  const std::vector<std::vector<Tensor>> others = {
      {Codes()},
      {Codes(), {"a.down_proj.weight_scale", Dtype::kF32, {200, 1}}},
      {Codes(), {"a.down_proj.weight_scale_inv", Dtype::kF32, {4, 6}}},  // blocks of 64
      {Codes(), {"a.down_proj.weight_scale_inv", Dtype::kU8, {2, 3}}},
      {{"a.down_proj.weight_packed", Dtype::kI32, {200, 48}}, {"a.down_proj.weight_scale", Dtype::kBF16, {200, 12}}},
      {{"a.experts.up_proj_blocks", Dtype::kU8, {2, 9, 8, 16}}, {"a.experts.up_proj_scales", Dtype::kU8, {2, 9, 8}}},
      {{"a.qweight", Dtype::kI32, {48, 200}}, {"a.scales", Dtype::kF16, {3, 200}}},
      {{"a.experts.up_proj", Dtype::kF8E4M3, {2, 128, 128}}, {"a.experts.up_proj_scale_inv", Dtype::kF32, {2, 1, 1}}},
  };
  for (std::vector<Tensor> tensors : others) {
    const std::string name = tensors[0].name;
    EXPECT_TRUE(Check(tensors).ok()) << name << ": nothing else is quantized";
    tensors.insert(tensors.begin(), kPlain);
    RecipeRules raw;
    raw.fp8 = false;
    EXPECT_TRUE(Check(tensors, raw).ok()) << name;
    raw = RecipeRules{};
    raw.exclude = {"model.*"};
    EXPECT_TRUE(Check(tensors, raw).ok()) << name;
    const absl::Status status = Check(tensors);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(name), HasSubstr(kPlain.name), HasSubstr("128x128"),
                                                     HasSubstr("recipe.fp8: false"), HasSubstr("--exclude")));
  }
}

TEST(Scheme, IndicesAndMasksAreNoCodes) {
  EXPECT_TRUE(Check({kPlain,
                     {"attn.relative_position_index", Dtype::kI64, {49, 49}},
                     {"attn.logit_scale", Dtype::kF32, {3, 1, 1}},
                     {"mask", Dtype::kU8, {8, 8}}})
                  .ok());
}

std::vector<std::string> Notes(std::vector<Tensor> tensors, const RecipeRules& rules = {}) {
  const auto catalog = Catalog::Create(std::move(tensors));
  EXPECT_TRUE(catalog.ok()) << catalog.status();
  return RecipeNotes(*catalog, rules, ChooseRecipes(*catalog, rules));
}

TEST(RecipeNotes, GlobsAndModulesThatMatchNothingAreNamed) {
  RecipeRules rules;
  rules.include = {"*.up_proj.*", "*.layer.0.*"};
  rules.exclude = {"model.layers.0", "*"};
  rules.modules_to_not_convert = {"lm_head", "up_proj", "vision"};
  EXPECT_THAT(Notes({kPlain}, rules),
              ElementsAre(AllOf(HasSubstr("'*.layer.0.*' in 'include'"), HasSubstr(kPlain.name)),
                          HasSubstr("'model.layers.0' in 'exclude'"),
                          AllOf(HasSubstr("1 of the names"), HasSubstr("'vision'"))));
  EXPECT_THAT(Notes({kPlain}), IsEmpty());
}

TEST(RecipeNotes, ExpertsThatEnginesCannotHoldAreNamed) {
  const Tensor even{"l.0.mlp.experts.0.up_proj.weight", Dtype::kBF16, {256, 128}};
  const Tensor odd{"l.0.mlp.experts.1.up_proj.weight", Dtype::kBF16, {192, 128}};
  EXPECT_THAT(Notes({even, odd}), ElementsAre(AllOf(HasSubstr("'l.0.mlp.experts.1.up_proj.weight' has 192 x 128"),
                                                    HasSubstr("vLLM's MoE refuses"))));
  EXPECT_THAT(Notes({even, odd}, Rules(Granularity::kChannel)), IsEmpty());
  RecipeRules rules;
  rules.exclude = {odd.name};
  EXPECT_THAT(Notes({even, odd}, rules), ElementsAre(HasSubstr("'l.0.mlp.experts' are FP8 in part")));
  EXPECT_EQ(ExpertsOf("l.0.mlp.shared_experts.up_proj.weight"), "");
  EXPECT_EQ(ExpertsOf("experts.0.w1.weight"), "experts");
}

}  // namespace
}  // namespace wsync
