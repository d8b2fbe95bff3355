#include "client/checkpoint/offline_quantizer.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "kernels/quantize.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::unique_ptr<Checkpoint> OpenOrDie(const std::string& path) {
  auto checkpoint = Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

QuantizeReport QuantizeOrDie(const std::string& in, const std::string& out, const QuantizeOptions& options) {
  const auto report = QuantizeCheckpoint(*OpenOrDie(in), out, options);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.value_or(QuantizeReport{});
}

// What published quantizers gave for the golden inputs: `wsync quantize` over a checkpoint made of these inputs.
struct GoldenRecipe {
  const char* name;  // in the golden file
  Preset preset;
  ScaleFormat scale_format;
  std::string unlike;  // the case in which the preset differs on purpose, see golden_test.cc
};

class Golden : public testing::TestWithParam<GoldenRecipe> {};

TEST_P(Golden, QuantizedCheckpointHasTheGoldenBytes) {
  const auto golden = SafetensorsFile::Open(std::string(WSYNC_TEST_DATA) + "/peers.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  std::map<std::string, const TensorView*> by_name;
  for (const TensorView& view : (*golden)->tensors()) by_name[view.tensor.name] = &view;
  std::vector<TestTensor> inputs;
  std::vector<std::string> cases;
  for (const auto& [name, view] : by_name) {
    if (!name.ends_with(".x")) continue;
    cases.push_back(name.substr(0, name.size() - 2));
    inputs.push_back({{cases.back() + ".weight", view->tensor.dtype, view->tensor.shape}, Copy(*view)});
  }
  ASSERT_EQ(cases.size(), 14u);
  const TemporaryDirectory directory;
  WriteSafetensors(directory / "in.safetensors", inputs);
  QuantizeOptions options;
  options.rules.include = {"*"};  // some case names contain "norm"
  options.rules.preset = GetParam().preset;
  options.rules.scale_format = GetParam().scale_format;
  const QuantizeReport report = QuantizeOrDie(directory / "in.safetensors", directory / "out", options);
  EXPECT_EQ(report.quantized_tensors, 14);
  const auto out = OpenOrDie(directory / "out");
  for (const std::string& name : cases) {
    const TensorView& codes = *by_name.at(name + "." + GetParam().name + ".q");
    const TensorView& scales = *by_name.at(name + "." + GetParam().name + ".s");
    const TensorView* weight = out->Find(name + ".weight");
    const TensorView* scale_inv = out->Find(name + ".weight_scale_inv");
    ASSERT_TRUE(weight != nullptr && scale_inv != nullptr) << name;
    EXPECT_EQ(weight->tensor.dtype, Dtype::kF8E4M3);
    EXPECT_EQ(weight->tensor.shape, codes.tensor.shape);
    EXPECT_EQ(scale_inv->tensor.shape, scales.tensor.shape);
    if (name == GetParam().unlike) {
      EXPECT_FALSE(Copy(*weight) == Copy(codes)) << name << " agrees by now: no exception any more";
      continue;
    }
    EXPECT_TRUE(Copy(*weight) == Copy(codes)) << name << ": codes differ";
    EXPECT_TRUE(Copy(*scale_inv) == Copy(scales)) << name << ": scales differ";
  }
}

INSTANTIATE_TEST_SUITE_P(OfflineQuantizer, Golden,
                         testing::Values(GoldenRecipe{"ieee", Preset::kDefault, ScaleFormat::kFp32,
                                                      "subnormal_128x128"},
                                         GoldenRecipe{"deepgemm", Preset::kDeepGemm, ScaleFormat::kFp32, ""},
                                         GoldenRecipe{"deepgemm_ue8m0", Preset::kDeepGemm, ScaleFormat::kPow2, ""},
                                         GoldenRecipe{"nemo", Preset::kNemo, ScaleFormat::kFp32, "subnormal_128x128"}),
                         [](const auto& test) { return std::string(test.param.name); });

// A small model whose big weight takes several pieces: 5000 x 1024 codes are more than one.
class SmallModel : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(in_);
    tensors_ = {Bf16Tensor("lm_head.weight", {256, 64}, 1),
                Bf16Tensor("model.embed_tokens.weight", {256, 64}, 2),
                Bf16Tensor("model.layers.0.mlp.up_proj.weight", {5000, 1024}, 3),
                Bf16Tensor("model.layers.0.self_attn.q_proj.weight", {130, 200}, 4),
                Bf16Tensor("model.layers.0.self_attn.q_proj.bias", {130}, 5),
                Bf16Tensor("model.norm.weight", {64}, 6)};
    WriteSafetensors(in_ + "/model.safetensors", tensors_);
    WriteText(in_ + "/config.json", R"({"model_type": "qwen2", "torch_dtype": "bfloat16"})");
    WriteText(in_ + "/tokenizer.json", "{}");
  }
  void Overwrite(size_t tensor, int64_t element, uint16_t bits) {
    std::memcpy(&tensors_[tensor].bytes[element * 2], &bits, 2);
    WriteSafetensors(in_ + "/model.safetensors", tensors_);
  }
  // To be cut after it was opened, as by somebody who writes the checkpoint anew.
  void CutBy(uint64_t bytes) {
    const std::string file = in_ + "/model.safetensors";
    std::filesystem::resize_file(file, std::filesystem::file_size(file) - bytes);
  }
  const TemporaryDirectory directory_;
  const std::string in_ = directory_ / "in";
  const std::string out_ = directory_ / "out";
  std::vector<TestTensor> tensors_;
};

TEST_F(SmallModel, AFileThatIsCutShortWhileItIsReadIsAnErrorAndNothingIsWritten) {
  // 20 bytes: the rest of a page that is still there reads as zeros, and no signal tells of it.
  for (const uint64_t cut : {uint64_t{20}, uint64_t{4} << 20}) {
    WriteSafetensors(in_ + "/model.safetensors", tensors_);
    const auto checkpoint = OpenOrDie(in_);
    CutBy(cut);
    const auto report = QuantizeCheckpoint(*checkpoint, out_, {});
    EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition) << report.status();
    EXPECT_THAT(std::string(report.status().message()), HasSubstr("model.safetensors' was cut short"));
    EXPECT_FALSE(std::filesystem::exists(out_ + "/model.safetensors")) << cut;
  }
}

TEST_F(SmallModel, BecomesAnFp8CheckpointWithConfigAndOtherFiles) {
  const QuantizeReport report = QuantizeOrDie(in_, out_, {});
  EXPECT_EQ(report.tensors, 6);
  EXPECT_EQ(report.quantized_tensors, 2);
  EXPECT_THAT(report.shards, ElementsAre("model.safetensors"));
  EXPECT_THAT(report.notes, IsEmpty());
  const auto out = OpenOrDie(out_);
  EXPECT_EQ(report.bytes_out, out->total_bytes());
  EXPECT_EQ(report.bytes_in, OpenOrDie(in_)->total_bytes());
  const TensorView* weight = out->Find("model.layers.0.self_attn.q_proj.weight");
  const TensorView* scales = out->Find("model.layers.0.self_attn.q_proj.weight_scale_inv");
  EXPECT_EQ(weight->tensor, (Tensor{weight->tensor.name, Dtype::kF8E4M3, {130, 200}}));
  EXPECT_EQ(scales->tensor, (Tensor{scales->tensor.name, Dtype::kF32, {2, 2}}));
  EXPECT_EQ(Copy(*out->Find("lm_head.weight")), tensors_[0].bytes);
  EXPECT_EQ(Copy(*out->Find("model.norm.weight")), tensors_[5].bytes);
  EXPECT_EQ(ReadText(out_ + "/tokenizer.json"), "{}");
  EXPECT_EQ(out->config()->value("torch_dtype", ""), "bfloat16");
  EXPECT_EQ((*out->config())["quantization_config"]["quant_method"], "fp8");
  EXPECT_THAT(out->ModulesToNotConvert(), ElementsAre("lm_head"));
}

TEST_F(SmallModel, ThreadsShardsAndAlignmentDoNotChangeAByte) {
  QuantizeOptions options;
  options.threads = 1;
  QuantizeOrDie(in_, out_, options);
  const auto reference = OpenOrDie(out_);
  // The same file with an unpadded header, as old writers made them: every tensor misaligned.
  const std::string file = ReadText(in_ + "/model.safetensors");
  std::string header = file.substr(8, static_cast<unsigned char>(file[0]) | static_cast<unsigned char>(file[1]) << 8);
  const std::string buffer = file.substr(8 + header.size());
  header += header.size() % 2 == 0 ? " " : "";
  WriteText(directory_ / "odd.safetensors", RawSafetensors(header, 0) + buffer);
  options.threads = 4;
  options.max_shard_bytes = 100'000;
  for (const std::string& in : {in_, directory_ / "odd.safetensors"}) {
    options.overwrite = true;
    QuantizeOrDie(in, directory_ / "other", options);
    const auto other = OpenOrDie(directory_ / "other");
    ASSERT_EQ(other->tensors().size(), reference->tensors().size());
    for (const TensorView& view : reference->tensors()) {
      ASSERT_NE(other->Find(view.tensor.name), nullptr);
      EXPECT_TRUE(Copy(*other->Find(view.tensor.name)) == Copy(view)) << view.tensor.name;
    }
  }
}

// An independent reading of the result: code * scale is within half a step of the input everywhere.
TEST_F(SmallModel, DequantizesToTheInputInEveryGranularity) {
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    QuantizeOptions options;
    options.rules.granularity = granularity;
    options.overwrite = true;
    QuantizeOrDie(in_, out_, options);
    const auto out = OpenOrDie(out_);
    const std::string name = tensors_[2].tensor.name;
    const TensorView* codes = out->Find(name);
    const TensorView* scales = out->Find(ScaleName(name, granularity));
    ASSERT_TRUE(codes != nullptr && scales != nullptr);
    const std::vector<int64_t> expected_shape = granularity == Granularity::kBlock     ? std::vector<int64_t>{40, 8}
                                                : granularity == Granularity::kChannel ? std::vector<int64_t>{5000, 1}
                                                                                       : std::vector<int64_t>{1};
    EXPECT_EQ(scales->tensor.shape, expected_shape);
    std::vector<float> values(5000 * 1024);
    Dequantize(codes->data, reinterpret_cast<const float*>(scales->data), granularity, 5000, 1024, values.data());
    double worst = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + 2, &tensors_[2].bytes[i * 2], 2);
      float input;
      std::memcpy(&input, &bits, 4);
      worst = std::max(worst, std::fabs(double{values[i]} - input) / std::fabs(input));
    }
    EXPECT_LT(worst, 1.0 / 16 + 1e-6) << GranularityName(granularity);  // 3 bits of mantissa, no subnormals here
    EXPECT_GT(worst, 1.0 / 64);
  }
}

TEST_F(SmallModel, ChannelAndTensorScalesAreDescribedAsCompressedTensors) {
  QuantizeOptions options;
  options.rules.granularity = Granularity::kChannel;
  QuantizeOrDie(in_, out_, options);
  const OrderedJson config = (*OpenOrDie(out_)->config())["quantization_config"];
  EXPECT_EQ(config["quant_method"], "compressed-tensors");
  EXPECT_EQ(config["ignore"], OrderedJson::array({"lm_head"}));
}

TEST_F(SmallModel, NonFiniteWeightsAreNamedAndLeaveNothing) {
  constexpr int64_t kIndex = 4321 * 1024 + 17;
  for (const uint16_t bits : {0x7f80, 0xff80, 0x7fc0, 0xffff}) {
    Overwrite(2, 4999 * 1024, bits);  // a later one must not be reported
    Overwrite(2, kIndex, bits);
    for (const Granularity granularity : {Granularity::kBlock, Granularity::kTensor}) {
      for (const int threads : {1, 4}) {
        QuantizeOptions options;
        options.rules.granularity = granularity;
        options.threads = threads;
        const auto report = QuantizeCheckpoint(*OpenOrDie(in_), out_, options);
        EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(report.status().message()),
                    HasSubstr("tensor 'model.layers.0.mlp.up_proj.weight': it has a NaN or infinity at index 4424721 "
                              "(row 4321, column 17)"));
      }
    }
  }
  EXPECT_THAT(FilesIn(directory_.path()), ElementsAre("in"));
}

TEST_F(SmallModel, NonFiniteValuesInRawTensorsAreNamedToo) {
  Overwrite(5, 63, 0x7fc0);
  const auto report = QuantizeCheckpoint(*OpenOrDie(in_), out_, {});
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("tensor 'model.norm.weight'"));
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("index 63"));
  EXPECT_THAT(FilesIn(directory_.path()), ElementsAre("in"));
}

TEST_F(SmallModel, RulesAndTheCheckpointsOwnListAreHonoured) {
  WriteText(in_ + "/config.json",
            R"({"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128],
                "modules_to_not_convert":["model.layers.0.self_attn.q_proj"]}})");
  const QuantizeReport report = QuantizeOrDie(in_, out_, {});
  EXPECT_EQ(report.quantized_tensors, 1);
  EXPECT_THAT(OpenOrDie(out_)->ModulesToNotConvert(), ElementsAre("lm_head", "model.layers.0.self_attn.q_proj"));
}

TEST_F(SmallModel, NothingQuantizedLeavesTheConfigAlone) {
  QuantizeOptions options;
  options.rules.exclude = {"*"};
  EXPECT_EQ(QuantizeOrDie(in_, out_, options).quantized_tensors, 0);
  EXPECT_EQ(OpenOrDie(out_)->config()->dump(), OpenOrDie(in_)->config()->dump());
}

TEST_F(SmallModel, Fp8CheckpointPassesThroughUnchanged) {
  QuantizeOrDie(in_, out_, {});
  const QuantizeReport again = QuantizeOrDie(out_, directory_ / "again", {});
  EXPECT_EQ(again.quantized_tensors, 0);
  EXPECT_EQ(ReadText(directory_ / "again/model.safetensors"), ReadText(out_ + "/model.safetensors"));
  EXPECT_EQ(ReadText(directory_ / "again/config.json"), ReadText(out_ + "/config.json"));
}

TEST_F(SmallModel, SchemesThatCannotBeMixedAreRefused) {
  WriteText(in_ + "/config.json", R"({"quantization_config":{"quant_method":"awq"}})");
  const auto report = QuantizeCheckpoint(*OpenOrDie(in_), out_, {});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("already quantized with quant_method \"awq\""));
}

TEST_F(SmallModel, CancelLeavesNothing) {
  const std::atomic<bool> cancel{true};
  QuantizeOptions options;
  options.cancel = &cancel;
  EXPECT_EQ(QuantizeCheckpoint(*OpenOrDie(in_), out_, options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(FilesIn(directory_.path()), ElementsAre("in"));
}

TEST_F(SmallModel, ProgressEndsAtAllBytes) {
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kTensor}) {
    QuantizeProgress last;
    int64_t previous = 0;
    QuantizeOptions options;
    options.overwrite = true;
    options.rules.granularity = granularity;
    options.progress = [&](const QuantizeProgress& progress) {
      EXPECT_GE(progress.bytes_done, previous);
      previous = progress.bytes_done;
      last = progress;
    };
    QuantizeOrDie(in_, out_, options);
    EXPECT_EQ(last.bytes_done, last.bytes_total);
    EXPECT_GE(last.bytes_total, OpenOrDie(in_)->total_bytes());
  }
}

TEST_F(SmallModel, MissingConfigIsNoted) {
  std::filesystem::remove(in_ + "/config.json");
  EXPECT_THAT(QuantizeOrDie(in_, out_, {}).notes, ElementsAre(HasSubstr("no config.json")));
  EXPECT_EQ((*OpenOrDie(out_)->config())["quantization_config"]["fmt"], "e4m3");
}

}  // namespace
}  // namespace wsync
