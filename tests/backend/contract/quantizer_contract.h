// What every backend's Quantizer must do.
#ifndef WSYNC_TESTS_BACKEND_CONTRACT_QUANTIZER_CONTRACT_H_
#define WSYNC_TESTS_BACKEND_CONTRACT_QUANTIZER_CONTRACT_H_

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "tests/backend/contract/agent.h"
#include "tests/backend/contract/encoded_model.h"

namespace wsync::contract {

// A model whose weights are on the device, a quantizer over them, and an image to encode into.
struct QuantizerRig {
  QuantizerRig(Agent& a, const EncodedModel& m) : agent(a), model(m) {
    weights = *a.backend().memory().Allocate(static_cast<int64_t>(m.weights().size()), "weights");
    image = *a.backend().memory().Allocate(m.plan()->image_bytes(), "image");
    Upload();
    auto made = a.backend().NewQuantizer(m.plan(), m.AddressesAt(weights->data()));
    EXPECT_TRUE(made.ok()) << made.status();
    quantizer = *std::move(made);
  }
  void Upload() { agent.ToDevice(weights->data(), model.weights()); }
  std::byte* Wire(int64_t k) { return image->data() + model.bucket(k).image_offset; }
  Bytes Image() { return agent.FromDevice(image->data(), image->bytes()); }
  void EncodeAll() {
    for (int64_t k = 0; k < model.buckets(); ++k) quantizer->Encode(k, Wire(k), nullptr);
  }

  Agent& agent;
  const EncodedModel& model;
  std::unique_ptr<Buffer> weights, image;
  std::unique_ptr<Quantizer> quantizer;
};

class QuantizerContract : public AgentContract {};

inline std::vector<RecipeRules> AllRules() {
  std::vector<RecipeRules> all(1);
  all[0].fp8 = false;
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    for (const ScaleFormat format : {ScaleFormat::kFp32, ScaleFormat::kPow2}) {
      for (const Preset preset : {Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl}) {
        all.push_back({.granularity = granularity, .scale_format = format, .preset = preset});
      }
    }
  }
  return all;
}

inline bool IsTritons(const RecipeRules& rules) {
  return rules.fp8 && rules.preset == Preset::kVerl && rules.granularity == Granularity::kBlock &&
         rules.scale_format == ScaleFormat::kFp32;
}

TEST_P(QuantizerContract, RandomModelsGiveTheKernelsBytesAndDigestsInEveryRecipe) {
  uint32_t seed = 1;
  for (const RecipeRules& rules : AllRules()) {
    if (GetParam().tritons_division && IsTritons(rules)) continue;
    const EncodedModel model(++seed, rules);
    QuantizerRig rig(*agent_, model);
    rig.EncodeAll();
    const auto digests = rig.quantizer->Finish(HangDeadline());
    ASSERT_TRUE(digests.ok()) << digests.status();
    std::vector<uint64_t> expected;
    EXPECT_EQ(rig.Image(), model.EncodeImage(&expected)) << "seed " << seed;
    EXPECT_EQ(*digests, expected) << "seed " << seed;
  }
}

TEST_P(QuantizerContract, ManyTinyTensorsInOneBucketAreEncodedAsOneLargeOneIs) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 500; ++i) tensors.push_back({"e." + std::to_string(i) + ".up.weight", Dtype::kBF16, {3, 5}});
  tensors.push_back({"big.up.weight", Dtype::kBF16, {5000, 300}});
  const EncodedModel model(tensors, {}, kDefaultBucketBytes);
  QuantizerRig rig(*agent_, model);
  rig.EncodeAll();
  std::vector<uint64_t> expected;
  const Bytes image = model.EncodeImage(&expected);
  const auto digests = rig.quantizer->Finish(HangDeadline());
  ASSERT_TRUE(digests.ok()) << digests.status();
  EXPECT_EQ(*digests, expected);
  EXPECT_EQ(rig.Image(), image);
}

TEST_P(QuantizerContract, AVersionFollowsAnotherWithNewWeightsInTheSameMemory) {
  EncodedModel model({{"a.up.weight", Dtype::kBF16, {1000, 200}}}, {.granularity = Granularity::kTensor});
  QuantizerRig rig(*agent_, model);
  rig.EncodeAll();
  ASSERT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
  const Bytes before = rig.Image();
  model.Poke(0, 77, 0x7F7F);  // the largest BF16: every code of the tensor changes with its scale
  rig.Upload();
  rig.EncodeAll();
  ASSERT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
  std::vector<uint64_t> expected;
  EXPECT_EQ(rig.Image(), model.EncodeImage(&expected));
  EXPECT_NE(rig.Image(), before);
}

TEST_P(QuantizerContract, BucketsMayComeInAnyOrderAndEachAfterTheOneBefore) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {2000, 300}}}, {.granularity = Granularity::kTensor});
  ASSERT_GT(model.buckets(), 5);
  QuantizerRig rig(*agent_, model);
  CompletionPtr previous;
  for (int64_t k = model.buckets() - 1; k >= 0; --k) previous = rig.quantizer->Encode(k, rig.Wire(k), previous);
  ASSERT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
  std::vector<uint64_t> expected;
  EXPECT_EQ(rig.Image(), model.EncodeImage(&expected));
}

TEST_P(QuantizerContract, PiecesOfBucketsThatWereNotEncodedHaveDigestZero) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {2000, 300}}}, {});
  QuantizerRig rig(*agent_, model);
  rig.EncodeAll();
  ASSERT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
  rig.quantizer->Encode(1, rig.Wire(1), nullptr);
  const auto digests = rig.quantizer->Finish(HangDeadline());
  ASSERT_TRUE(digests.ok());
  EXPECT_EQ((*digests)[0], 0u);
  EXPECT_NE((*digests)[model.bucket(1).piece_begin], 0u);
}

// Bits of BF16 values that no version may carry, and what they are called.
struct NonFinite {
  uint16_t bits;
  std::string name;
};
inline std::vector<NonFinite> NonFiniteValues() {
  return {{0x7FC0, "NaN"}, {0xFF81, "NaN"}, {0x7F80, "holds infinity"}, {0xFF80, "-infinity"}};
}

TEST_P(QuantizerContract, ANonFiniteWeightIsNamedWithTensorIndexAndKindInEveryGranularity) {
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    for (const NonFinite& value : NonFiniteValues()) {
      EncodedModel model({{"fine.up.weight", Dtype::kBF16, {300, 40}}, {"bad.up.weight", Dtype::kBF16, {1500, 100}}},
                         {.granularity = granularity});
      model.Poke(1, 120'034, value.bits);
      model.Poke(1, 130'000, 0x7FC0);  // a later one: the first is the one to name
      QuantizerRig rig(*agent_, model);
      rig.EncodeAll();
      const absl::Status status = rig.quantizer->Finish(HangDeadline()).status();
      EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, "bad.up.weight"));
      EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, "index 120034"));
      EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, "[row 1200, col 34]"));
      EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, value.name));
    }
  }
}

TEST_P(QuantizerContract, ANonFiniteRawTensorFailsTooAndTheNextVersionIsClean) {
  EncodedModel model({{"model.norm.weight", Dtype::kBF16, {3000}}}, {});
  model.Poke(0, 2999, 0xFFFF);
  QuantizerRig rig(*agent_, model);
  rig.EncodeAll();
  EXPECT_THAT(rig.quantizer->Finish(HangDeadline()).status(),
              FailsWith(absl::StatusCode::kInvalidArgument, "index 2999"));
  model.Poke(0, 2999, 0x3F80);
  rig.Upload();
  rig.EncodeAll();
  const auto digests = rig.quantizer->Finish(HangDeadline());
  ASSERT_TRUE(digests.ok()) << digests.status();
  std::vector<uint64_t> expected;
  EXPECT_EQ(rig.Image(), model.EncodeImage(&expected));
  EXPECT_EQ(*digests, expected);
}

TEST_P(QuantizerContract, InfinitiesOfRawTensorsPassWhereTheyAreAllowedByNameAndNowhereElse) {
  RecipeRules rules;
  rules.allow_infinities = {"*.mask", "*.up.weight"};
  EncodedModel model({{"a.mask", Dtype::kBF16, {33, 40}},
                      {"b.up.weight", Dtype::kBF16, {300, 40}},
                      {"other.mask_of", Dtype::kBF16, {33, 40}}},
                     rules);
  for (const int64_t at : {0, 700, 33 * 40 - 1}) model.Poke(0, at, 0xFF80);
  const auto finish = [&] {
    QuantizerRig rig(*agent_, model);
    rig.EncodeAll();
    return rig.quantizer->Finish(HangDeadline()).status();
  };
  EXPECT_TRUE(finish().ok()) << finish();
  model.Poke(1, 5, 0x7F80);  // quantized, whatever the list says
  EXPECT_THAT(finish(), FailsWith(absl::StatusCode::kInvalidArgument, "b.up.weight"));
  model.Poke(1, 5, 0x3F80);
  model.Poke(2, 5, 0x7F80);
  EXPECT_THAT(finish(), FailsWith(absl::StatusCode::kInvalidArgument, "other.mask_of"));
  EXPECT_THAT(finish(), FailsWith(absl::StatusCode::kInvalidArgument, "recipe.allow_infinities"));
  model.Poke(2, 5, 0x3F80);
  model.Poke(0, 9, 0x7FC0);
  EXPECT_THAT(finish(), FailsWith(absl::StatusCode::kInvalidArgument, "holds NaN at index 9"));
}

TEST_P(QuantizerContract, CancelFailsWhatHasNotBegunUntilFinish) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {1000, 200}}}, {});
  QuantizerRig rig(*agent_, model);
  rig.quantizer->Cancel(absl::AbortedError("the round is over"));
  EXPECT_THAT(WaitFor(rig.quantizer->Encode(0, rig.Wire(0), nullptr)),
              FailsWith(absl::StatusCode::kAborted, "the round is over"));
  EXPECT_THAT(rig.quantizer->Finish(HangDeadline()).status(),
              FailsWith(absl::StatusCode::kAborted, "the round is over"));
  rig.EncodeAll();
  EXPECT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
}

TEST_P(QuantizerContract, AnEncodeAfterAFailedOneFailsWithItsErrorAndLeavesTheWireAlone) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {1000, 200}}}, {});
  QuantizerRig rig(*agent_, model), other(*agent_, model);
  other.quantizer->Cancel(absl::AbortedError("not this time"));
  const CompletionPtr failed = other.quantizer->Encode(0, other.Wire(0), nullptr);
  EXPECT_THAT(WaitFor(rig.quantizer->Encode(0, rig.Wire(0), failed)),
              FailsWith(absl::StatusCode::kAborted, "not this time"));
  EXPECT_EQ(rig.Image(), Bytes(rig.image->bytes()));
}

TEST_P(QuantizerContract, AQuantizerWithWorkLeftCanBeDestroyed) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {20'000, 200}}}, {});
  QuantizerRig rig(*agent_, model);
  rig.EncodeAll();
  rig.quantizer = nullptr;
  rig.weights = nullptr;  // a late read would fault
  EXPECT_EQ(rig.image->bytes(), model.plan()->image_bytes());
}

TEST_P(QuantizerContract, TensorsThatDoNotFitTheCatalogAreRefused) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {100, 20}}}, {});
  Backend& backend = agent_->backend();
  EXPECT_THAT(backend.NewQuantizer(model.plan(), {}).status(),
              FailsWith(absl::StatusCode::kInvalidArgument, "0 addresses for 1 tensors"));
  const auto memory = Allocate(*agent_, 100'000);
  EXPECT_THAT(backend.NewQuantizer(model.plan(), {memory->data() + 1}).status(),
              FailsWith(absl::StatusCode::kInvalidArgument, "a.up.weight"));
}

}  // namespace wsync::contract

#endif  // WSYNC_TESTS_BACKEND_CONTRACT_QUANTIZER_CONTRACT_H_
