#include "client/checkpoint/checkpoint.h"

#include <gmock/gmock.h>

#include "client/checkpoint/natural_order.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> NamesOf(const Checkpoint& checkpoint) {
  std::vector<std::string> names;
  for (const TensorView& view : checkpoint.tensors()) names.push_back(view.tensor.name);
  return names;
}

std::string IndexOf(const std::vector<std::pair<std::string, std::string>>& places) {
  Json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", Json::object()}};
  for (const auto& [tensor, shard] : places) index["weight_map"][tensor] = shard;
  return index.dump();
}

constexpr char kShard1[] = "model-00001-of-00002.safetensors";
constexpr char kShard2[] = "model-00002-of-00002.safetensors";

// Two shards, with layer 10 in the first: order must come from the names.
class ShardedCheckpoint : public testing::Test {
 protected:
  void SetUp() override {
    WriteSafetensors(directory_ / kShard1,
                     {Bf16Tensor("model.layers.10.w", {2, 2}), Bf16Tensor("lm_head.weight", {2})});
    WriteSafetensors(directory_ / kShard2,
                     {Bf16Tensor("model.layers.2.w", {2, 3}), Bf16Tensor("model.layers.9.w", {4})});
    WriteIndex({{"model.layers.10.w", kShard1},
                {"lm_head.weight", kShard1},
                {"model.layers.2.w", kShard2},
                {"model.layers.9.w", kShard2}});
  }
  void WriteIndex(const std::vector<std::pair<std::string, std::string>>& places) {
    WriteText(directory_ / kIndexFileName, IndexOf(places));
  }
  std::string OpenError(absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const absl::Status status = Checkpoint::Open(directory_.path()).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }
  TemporaryDirectory directory_;
};

TEST_F(ShardedCheckpoint, OpensInNaturalOrder) {
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(NamesOf(**checkpoint),
              ElementsAre("lm_head.weight", "model.layers.2.w", "model.layers.9.w", "model.layers.10.w"));
  EXPECT_EQ((*checkpoint)->total_bytes(), 2 * (4 + 2 + 6 + 4));
  ASSERT_NE((*checkpoint)->Find("model.layers.9.w"), nullptr);
  EXPECT_EQ(Copy(*(*checkpoint)->Find("model.layers.9.w")), RandomBf16(4, 1));
  EXPECT_EQ((*checkpoint)->Find("model.layers.3.w"), nullptr);
  EXPECT_FALSE((*checkpoint)->config().has_value());
}

TEST_F(ShardedCheckpoint, MissingShardIsNamed) {
  std::filesystem::remove(directory_ / kShard2);
  EXPECT_THAT(OpenError(absl::StatusCode::kNotFound), HasSubstr(kShard2));
}

TEST_F(ShardedCheckpoint, TensorMissingFromItsShardIsNamed) {
  WriteIndex({{"model.layers.10.w", kShard1},
              {"lm_head.weight", kShard1},
              {"model.layers.2.w", kShard2},
              {"model.layers.9.w", kShard2},
              {"model.norm.weight", kShard2}});
  EXPECT_THAT(OpenError(),
              HasSubstr("tensor 'model.norm.weight' in 'model-00002-of-00002.safetensors', but that file"));
}

// A shard may hold what the index does not name: a base of which an overlay took the place of some tensors.
TEST_F(ShardedCheckpoint, TensorsThatTheIndexDoesNotNameAreLeftOutAndNoted) {
  WriteIndex({{"model.layers.10.w", kShard1}, {"model.layers.2.w", kShard2}});
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(NamesOf(**checkpoint), ElementsAre("model.layers.2.w", "model.layers.10.w"));
  EXPECT_THAT((*checkpoint)->notes(),
              ElementsAre(AllOf(HasSubstr("left out of the shards 2 tensors which the index does not name"),
                                HasSubstr("'lm_head.weight' in 'model-00001-of-00002.safetensors' and others"))));
  EXPECT_EQ((*checkpoint)->total_bytes(), 2 * (4 + 6));
}

TEST_F(ShardedCheckpoint, OfTwoCopiesTheIndexDecidesAndTheOtherIsNoted) {
  for (const auto& [shard, seed] : {std::pair{kShard1, 1}, {kShard2, 2}}) {
    WriteSafetensors(directory_ / shard, {Bf16Tensor("lm_head.weight", {2}, seed)});
  }
  for (const auto& [shard, seed] : {std::pair{kShard1, 1}, {kShard2, 2}}) {
    WriteSafetensors(directory_ / "overlay.safetensors", {Bf16Tensor("x", {1})});
    WriteIndex({{"lm_head.weight", shard}, {"x", "overlay.safetensors"}});
    const auto alone = Checkpoint::Open(directory_.path());
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ(Copy(*(*alone)->Find("lm_head.weight")), RandomBf16(2, seed));
    EXPECT_THAT((*alone)->notes(), ElementsAre()) << "a shard that the index does not name is not looked at";
  }
  WriteSafetensors(directory_ / "overlay.safetensors", {Bf16Tensor("x", {1}), Bf16Tensor("lm_head.weight", {2}, 3)});
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(Copy(*(*checkpoint)->Find("lm_head.weight")), RandomBf16(2, 2));
  EXPECT_THAT((*checkpoint)->notes(),
              ElementsAre(HasSubstr("left out of the shards 1 tensor which the index places in another shard: "
                                    "'lm_head.weight' in 'overlay.safetensors'")));
}

TEST_F(ShardedCheckpoint, BesideASingleFileTheIndexCountsOnlyIfItNamesThatFile) {
  WriteSafetensors(directory_ / kSingleFileName, {Bf16Tensor("lm_head.weight", {2}, 7), Bf16Tensor("stray", {2})});
  const auto single = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_THAT(NamesOf(**single), ElementsAre("lm_head.weight", "stray"));
  EXPECT_THAT((*single)->notes(), ElementsAre(HasSubstr("model.safetensors.index.json, which does not name it")));
  WriteIndex({{"lm_head.weight", kSingleFileName}, {"model.layers.2.w", kShard2}});
  const auto indexed = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(indexed.ok()) << indexed.status();
  EXPECT_THAT(NamesOf(**indexed), ElementsAre("lm_head.weight", "model.layers.2.w"));
}

TEST_F(ShardedCheckpoint, TheIndexsMetadataIsNotHeldAgainstIt) {
  WriteText(directory_ / kIndexFileName,
            R"({"metadata":{"total_size":1,"loss":NaN,"x":[Infinity,{}]},"weight_map":{"lm_head.weight":")" +
                std::string(kShard1) + R"("}})");
  EXPECT_TRUE(Checkpoint::Open(directory_.path()).ok()) << Checkpoint::Open(directory_.path()).status();
}

TEST_F(ShardedCheckpoint, ShardNamesThatLeaveTheDirectoryAreRefused) {
  for (const char* name :
       {"../evil.safetensors", "/etc/evil.safetensors", "sub/evil.safetensors", "..", "", ".safetensors", "evil.bin"}) {
    WriteIndex({{"x", name}});
    EXPECT_THAT(OpenError(), HasSubstr("expected the name of a .safetensors file beside the index")) << name;
  }
}

TEST_F(ShardedCheckpoint, MalformedIndexIsRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{", "not valid JSON"},
      {"[]", "no \"weight_map\""},
      {R"({"weight_map":[]})", "no \"weight_map\""},
      {R"({"weight_map":{}})", "names no tensors"},
      {R"({"weight_map":{"x":1}})", "tensor 'x'"},
      {R"({"weight_map":{"x":"a.safetensors","x":"a.safetensors"}})", "key 'x' twice"}};
  for (const auto& [text, expected] : cases) {
    WriteText(directory_ / kIndexFileName, text);
    EXPECT_THAT(OpenError(), HasSubstr(expected)) << text;
  }
}

TEST_F(ShardedCheckpoint, MalformedShardIsRefusedByName) {
  WriteText(directory_ / kShard2, "short");
  EXPECT_THAT(OpenError(), HasSubstr(kShard2));
}

TEST(Checkpoint, SingleFileOpensAlone) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory / "any.safetensors", {Bf16Tensor("x", {2, 2})});
  WriteText(directory / kConfigFileName, "not looked at");
  const auto checkpoint = Checkpoint::Open(directory / "any.safetensors");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(NamesOf(**checkpoint), ElementsAre("x"));
  EXPECT_EQ((*checkpoint)->directory(), "");
}

TEST(Checkpoint, DirectoryWithoutModelSaysWhatToDo) {
  const TemporaryDirectory directory;
  const auto message = [&] { return std::string(Checkpoint::Open(directory.path()).status().message()); };
  EXPECT_THAT(message(), HasSubstr("neither model.safetensors nor model.safetensors.index.json"));
  WriteText(directory / "pytorch_model.bin", "");
  EXPECT_THAT(message(), HasSubstr("convert the checkpoint to safetensors first"));
  std::filesystem::remove(directory / "pytorch_model.bin");
  WriteText(directory / "other.safetensors", "");
  EXPECT_THAT(message(), HasSubstr("to open 'other.safetensors' alone, give its path"));
}

TEST(Checkpoint, ConfigIsRead) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory / kSingleFileName, {Bf16Tensor("x", {2, 2})});
  WriteText(directory / kConfigFileName, R"({"model_type":"qwen2"})");
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config()->value("model_type", ""), "qwen2");
}

// transformers writes Infinity for a Mamba hybrid's time_step_limit, and reads it back.
TEST(Checkpoint, ConfigMayHoldPythonsNumbers) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory / kSingleFileName, {Bf16Tensor("x", {2, 2})});
  const std::string text =
      "{\n  \"time_step_limit\": [\n    0.0,\n    Infinity\n  ],\n  \"model_type\": \"nemotron_h\"\n}";
  WriteText(directory / kConfigFileName, text);
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(DumpJson(*(*checkpoint)->config()), text);
}

TEST(Checkpoint, MalformedConfigIsRefusedByName) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory / kSingleFileName, {Bf16Tensor("x", {2, 2})});
  for (const char* text : {"", "[1]", "{", R"({"a":1,"a":2})"}) {
    WriteText(directory / kConfigFileName, text);
    const absl::Status status = Checkpoint::Open(directory.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
  }
}

TEST(NaturalOrder, ComparesNumbersByValue) {
  const std::vector<std::string> sorted = {
      "", "a", "a.2", "a.2.w", "a.10", "a.010", "a.10.w", "a.99999999999999999999", "a.b", "b"};
  for (size_t i = 0; i < sorted.size(); ++i) {
    for (size_t j = 0; j < sorted.size(); ++j) {
      const bool same_number =
          (sorted[i] == "a.10" && sorted[j] == "a.010") || (sorted[i] == "a.010" && sorted[j] == "a.10");
      if (same_number) {
        EXPECT_NE(NaturalLess(sorted[i], sorted[j]), NaturalLess(sorted[j], sorted[i]));
      } else {
        EXPECT_EQ(NaturalLess(sorted[i], sorted[j]), i < j) << sorted[i] << " " << sorted[j];
      }
    }
  }
}

}  // namespace
}  // namespace wsync
