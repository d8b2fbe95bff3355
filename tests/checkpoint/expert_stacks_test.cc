#include "client/checkpoint/expert_stacks.h"

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kExperts = 2, kHidden = 4, kIntermediate = 3;
constexpr char kConfig[] = R"({"model_type": "qwen3_5_moe", "text_config":
    {"model_type": "qwen3_5_moe_text", "num_experts": 2, "hidden_size": 4, "moe_intermediate_size": 3}})";

const std::byte kBytes[4096] = {};

std::vector<TensorView> Stacks(std::vector<int64_t> gate_up, std::vector<int64_t> down, Dtype dtype = Dtype::kBF16) {
  const auto view = [&](const char* name, std::vector<int64_t> shape, int64_t at) {
    const Tensor tensor{absl::StrCat("model.layers.0.mlp.experts.", name), dtype, std::move(shape)};
    return TensorView{tensor, kBytes + at, BytesOf(tensor)};
  };
  return {view("down_proj", std::move(down), 0), view("gate_up_proj", std::move(gate_up), 1024)};
}

std::vector<TensorView> Known() {
  return Stacks({kExperts, 2 * kIntermediate, kHidden}, {kExperts, kHidden, kIntermediate});
}

std::vector<std::string> Names(const std::vector<TensorView>& tensors) {
  std::vector<std::string> names;
  for (const TensorView& view : tensors) names.push_back(view.tensor.name);
  return names;
}

bool Unstacks(std::vector<TensorView> tensors, const char* config = kConfig) {
  const std::vector<std::string> before = Names(tensors);
  return Names(UnstackExperts(std::move(tensors), OrderedJson::parse(config))) != before;
}

TEST(ExpertStacks, EveryExpertIsAViewIntoTheStack) {
  const auto apart = UnstackExperts(Known(), OrderedJson::parse(kConfig));
  const std::string at = "model.layers.0.mlp.experts.";
  EXPECT_THAT(Names(apart), ElementsAre(at + "0.down_proj.weight", at + "0.gate_proj.weight", at + "0.up_proj.weight",
                                        at + "1.down_proj.weight", at + "1.gate_proj.weight", at + "1.up_proj.weight"));
  const int64_t matrix = kHidden * kIntermediate * 2;
  EXPECT_EQ(apart[3].tensor.shape, (std::vector<int64_t>{kHidden, kIntermediate}));
  EXPECT_EQ(apart[4].tensor.shape, (std::vector<int64_t>{kIntermediate, kHidden}));
  for (const TensorView& view : apart) EXPECT_EQ(view.bytes, matrix);
  EXPECT_EQ(apart[0].data, kBytes);
  EXPECT_EQ(apart[3].data, kBytes + matrix);
  EXPECT_EQ(apart[1].data, kBytes + 1024);               // gate rows of expert 0
  EXPECT_EQ(apart[2].data, kBytes + 1024 + matrix);      // then its up rows
  EXPECT_EQ(apart[5].data, kBytes + 1024 + 3 * matrix);  // up rows of expert 1
}

TEST(ExpertStacks, WhatIsNotKnownStaysAsItIs) {
  EXPECT_TRUE(Unstacks(Known()));
  const std::vector<int64_t> down = {kExperts, kHidden, kIntermediate};
  EXPECT_FALSE(Unstacks(Stacks({kExperts, kHidden, 2 * kIntermediate}, down))) << "transposed";
  EXPECT_FALSE(Unstacks(Stacks({kExperts + 1, 2 * kIntermediate, kHidden}, down))) << "another size";
  EXPECT_FALSE(Unstacks(Stacks({kExperts, 2 * kIntermediate, kHidden}, down, Dtype::kF8E4M3))) << "already FP8";
  EXPECT_FALSE(Unstacks({Known()[1]})) << "one stack alone";
  EXPECT_FALSE(Unstacks(Known(), R"({"model_type": "llama4_text", "num_experts": 2, "hidden_size": 4,
                                     "moe_intermediate_size": 3})"));
  EXPECT_FALSE(Unstacks(Known(), R"({"model_type": "qwen3_moe"})")) << "sizes unknown";
  EXPECT_EQ(Names(UnstackExperts(Known(), std::nullopt)), Names(Known()));
  auto both = Known();
  both.push_back({{"model.layers.0.mlp.experts.1.up_proj.weight", Dtype::kBF16, {3, 4}}, kBytes, 24});
  EXPECT_FALSE(Unstacks(std::move(both))) << "experts have their names already";
}

}  // namespace
}  // namespace wsync
