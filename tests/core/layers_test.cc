#include "server/core/layers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "absl/strings/str_replace.h"
#include "tests/core/plan_testing.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string> Names(const std::vector<LayerReady>& ready) {
  std::vector<std::string> names;
  for (const LayerReady& layer : ready) names.push_back(layer.name);
  return names;
}

TEST(LayersTest, LayerIsThePrefixUpToItsNumber) {
  EXPECT_EQ(LayerOf("model.layers.17.mlp.up_proj.weight"), "model.layers.17");
  EXPECT_EQ(LayerOf("layers.0.norm"), "layers.0");
  EXPECT_EQ(LayerOf("model.vision.layers.3.layers.4.weight"), "model.vision.layers.3");
  EXPECT_EQ(LayerOf("model.sublayers.3.x.layers.5.weight"), "model.sublayers.3.x.layers.5");
  EXPECT_EQ(LayerOf("model.embed_tokens.weight"), "");
  EXPECT_EQ(LayerOf("model.layers.norm.weight"), "");
  EXPECT_EQ(LayerOf("model.layers.3"), "");
  EXPECT_EQ(LayerOf("model.layers.3x.weight"), "");
  EXPECT_EQ(LayerOf("layers."), "");
  EXPECT_EQ(LayerOf(""), "");
}

// Two layers of 100 KB each with an embedding around them, in buckets of 64 KiB: both layers share a bucket.
std::shared_ptr<const Plan> TwoLayers() {
  RecipeRules rules;
  rules.fp8 = false;
  return MakePlan({{"embed.weight", Dtype::kU8, {128, 300}},
                   {"model.layers.0.a.weight", Dtype::kU8, {512, 200}},
                   {"model.layers.1.a.weight", Dtype::kU8, {512, 200}},
                   {"head.weight", Dtype::kU8, {128, 10}}},
                  rules, kMinBucketBytes);
}

TEST(LayersTest, LayerIsReadyWithTheBucketThatHoldsItsLastByte) {
  const auto plan = TwoLayers();
  const LayerMap map(*plan);
  EXPECT_THAT(map.names(), ElementsAre("", "model.layers.0", "model.layers.1"));
  EXPECT_THAT(map.bytes(), ElementsAre(128 * 310, 512 * 200, 512 * 200));
  LayerCount count(&map);
  std::vector<std::vector<std::string>> ready;
  for (size_t k = 0; k < plan->buckets().size(); ++k) ready.push_back(Names(count.Applied(static_cast<int64_t>(k))));
  // 64 KiB buckets of 25.6 KB units: embed + 1 unit | 2 | 1 + 1 | 2 | 1 + head.
  EXPECT_THAT(ready, ElementsAre(IsEmpty(), IsEmpty(), ElementsAre("model.layers.0"), IsEmpty(),
                                 ElementsAre("model.layers.1", "")));
}

TEST(LayersTest, EveryVersionIsCountedAnew) {
  const auto plan = TwoLayers();
  const LayerMap map(*plan);
  LayerCount first(&map);
  first.Applied(0);
  LayerCount second(&map);
  int64_t ready = 0;
  for (int64_t k = 0; k < static_cast<int64_t>(plan->buckets().size()); ++k) {
    for (const LayerReady& layer : second.Applied(k)) {
      EXPECT_EQ(layer.ready, ++ready);
      EXPECT_EQ(layer.layers, 3);
    }
  }
  EXPECT_EQ(ready, 3);
}

RC_GTEST_PROP(LayersTest, EveryLayerIsToldOnceAndExactlyWhenAllItsBytesAreThere, ()) {
  std::vector<Tensor> tensors = RandomTensors();
  for (Tensor& tensor : tensors) {  // several tensors of one layer, apart from each other, and some of none
    const int64_t layer = Uniform(0, 4);
    tensor.name = absl::StrReplaceAll(tensor.name, {{"model.layers.", "x"}});
    if (layer > 0) tensor.name = absl::StrCat("model.layers.", layer, ".", tensor.name);
  }
  const auto plan = MakePlan(std::move(tensors), RandomRules(), RandomBucketBytes());
  const LayerMap map(*plan);
  RC_ASSERT(std::accumulate(map.bytes().begin(), map.bytes().end(), int64_t{0}) == plan->payload_bytes());

  std::vector<int64_t> order(plan->buckets().size());
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[Uniform(0, static_cast<int64_t>(i))]);
  std::map<std::string, int64_t> missing;  // pieces, by layer: counted another way than the code does
  for (const Piece& piece : plan->pieces()) {
    ++missing[std::string(LayerOf(plan->catalog().tensors()[piece.tensor].name))];
  }
  LayerCount count(&map);
  std::set<std::string> told;
  for (const int64_t bucket : order) {
    std::set<std::string> complete;
    for (const Piece& piece : plan->PiecesOf(plan->buckets()[bucket])) {
      const std::string layer(LayerOf(plan->catalog().tensors()[piece.tensor].name));
      if (--missing[layer] == 0) complete.insert(layer);
    }
    const std::vector<std::string> ready = Names(count.Applied(bucket));
    RC_ASSERT((std::set<std::string>(ready.begin(), ready.end()) == complete));
    RC_ASSERT(ready.size() == complete.size());
    told.insert(ready.begin(), ready.end());
  }
  RC_ASSERT(told.size() == missing.size());
}

}  // namespace
}  // namespace wsync
