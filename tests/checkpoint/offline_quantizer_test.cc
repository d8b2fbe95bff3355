#include "client/checkpoint/offline_quantizer.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "client/checkpoint/source_scheme.h"
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
  EXPECT_THAT(ModulesToNotConvert(out->config()), ElementsAre("lm_head", "model.embed_tokens"));
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
  EXPECT_EQ(config["ignore"], OrderedJson::array({"lm_head", "model.embed_tokens"}));
}

TEST_F(SmallModel, NonFiniteWeightsAreNamedAndLeaveNothing) {
  constexpr int64_t kIndex = 4321 * 1024 + 17;
  for (const auto& [bits, kind] :
       {std::pair{0x7f80, "infinity"}, {0xff80, "-infinity"}, {0x7fc0, "NaN"}, {0xffff, "NaN"}}) {
    Overwrite(2, 4999 * 1024, bits);  // a later one must not be reported
    Overwrite(2, kIndex, bits);
    for (const Granularity granularity : {Granularity::kBlock, Granularity::kTensor}) {
      for (const int threads : {1, 4}) {
        QuantizeOptions options;
        options.rules.granularity = granularity;
        options.rules.allow_infinities = {"*"};  // which is not for weights that are quantized
        options.threads = threads;
        const auto report = QuantizeCheckpoint(*OpenOrDie(in_), out_, options);
        EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(report.status().message()),
                    HasSubstr(std::string("tensor 'model.layers.0.mlp.up_proj.weight': it has ") + kind +
                              " at index 4424721 (row 4321, column 17)"));
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

// An additive causal mask, Gemma-4's clips that are not set, GPT-J's masked_bias: infinities that are meant.
TEST_F(SmallModel, InfinitiesOfNamedRawTensorsPassWhereTheyAreAllowed) {
  const std::string clip = "model.vision_tower.encoder.layers.0.mlp.up_proj.input_min";
  TestTensor mask{{"text_model.attn_mask", Dtype::kF32, {8, 8}}, {}};
  for (int i = 0; i < 64; ++i) {
    const float value = i % 9 == 0 ? 0 : -INFINITY;
    mask.bytes.insert(mask.bytes.end(), reinterpret_cast<const std::byte*>(&value),
                      reinterpret_cast<const std::byte*>(&value) + sizeof(value));
  }
  tensors_.push_back(mask);
  tensors_.push_back({{clip, Dtype::kBF16, {}}, {std::byte{0x80}, std::byte{0xff}}});
  WriteSafetensors(in_ + "/model.safetensors", tensors_);
  const auto error = [&](std::vector<std::string> allowed) {
    QuantizeOptions options;
    options.rules.allow_infinities = std::move(allowed);
    return std::string(QuantizeCheckpoint(*OpenOrDie(in_), out_, options).status().message());
  };
  EXPECT_THAT(error({}), HasSubstr("--allow-infinities '"));
  EXPECT_THAT(error({"*.attn_mask"}), HasSubstr("tensor '" + clip + "': it has -infinity at index 0"));
  EXPECT_EQ(error({"*.attn_mask", "*.input_min"}), "");
  EXPECT_EQ(Copy(*OpenOrDie(out_)->Find("text_model.attn_mask")), mask.bytes);
  EXPECT_EQ(Copy(*OpenOrDie(out_)->Find(clip)), tensors_.back().bytes);
}

TEST_F(SmallModel, NaNsOfRawTensorsPassNowhere) {
  Overwrite(5, 63, 0x7fc0);
  QuantizeOptions options;
  options.rules.allow_infinities = {"*"};
  const std::string message(QuantizeCheckpoint(*OpenOrDie(in_), out_, options).status().message());
  EXPECT_THAT(message, HasSubstr("'model.norm.weight': it has NaN at index 63"));
  EXPECT_THAT(message, testing::Not(HasSubstr("--allow-infinities")));
}

std::vector<TestTensor> OfDtypes(const std::vector<Dtype>& dtypes) {
  std::vector<TestTensor> tensors;
  for (const Dtype dtype : dtypes) {
    TestTensor made{{"model.layers.0." + std::string(DtypeName(dtype)) + ".weight", dtype, {128, 128}}, {}};
    made.bytes = std::vector<std::byte>(BytesOf(made.tensor), std::byte{0x7e});
    tensors.push_back(made);
  }
  return tensors;
}

void ExpectAsTheyWere(const Checkpoint& out, const std::vector<TestTensor>& tensors) {
  for (const TestTensor& made : tensors) {
    ASSERT_NE(out.Find(made.tensor.name), nullptr);
    EXPECT_EQ(out.Find(made.tensor.name)->tensor, made.tensor);
    EXPECT_EQ(Copy(*out.Find(made.tensor.name)), made.bytes);
  }
}

// Exponents as MX checkpoints hold them, complex tables: as they are, though all is included.
TEST_F(SmallModel, DtypesThatAreNoWeightsPassThroughBesideQuantizedOnes) {
  const std::vector<TestTensor> odd = OfDtypes({Dtype::kF8E8M0, Dtype::kC64});
  tensors_.insert(tensors_.end(), odd.begin(), odd.end());
  WriteSafetensors(in_ + "/model.safetensors", tensors_);
  QuantizeOptions options;
  options.rules.include = {"*.layers.*"};
  QuantizeOrDie(in_, out_, options);
  ExpectAsTheyWere(*OpenOrDie(out_), odd);
}

// FP8 of other makers is a scheme of its own: it is moved, and not mixed.
TEST_F(SmallModel, Fp8OfOtherMakersPassesThroughWhereNothingElseIsQuantized) {
  const std::vector<TestTensor> odd = OfDtypes({Dtype::kF8E4M3Fnuz, Dtype::kF8E5M2Fnuz});
  tensors_.insert(tensors_.end(), odd.begin(), odd.end());
  WriteSafetensors(in_ + "/model.safetensors", tensors_);
  EXPECT_EQ(QuantizeCheckpoint(*OpenOrDie(in_), out_, {}).status().code(), absl::StatusCode::kInvalidArgument);
  QuantizeOptions options;
  options.rules.fp8 = false;
  QuantizeOrDie(in_, out_, options);
  ExpectAsTheyWere(*OpenOrDie(out_), odd);
}

// A Mamba hybrid's config, as transformers writes it.
TEST_F(SmallModel, ConfigKeepsPythonsNumbers) {
  WriteText(in_ + "/config.json", R"({"time_step_limit": [0.0, Infinity], "nested": {"x": [[-Infinity], NaN, 1e-05]},
                                      "note": "Infinity", "big": 100000000000000000000})");
  QuantizeOrDie(in_, out_, {});
  const std::string text = ReadText(out_ + "/config.json");
  EXPECT_THAT(text, HasSubstr("\"time_step_limit\": [\n    0.0,\n    Infinity\n  ],"));
  EXPECT_THAT(text, HasSubstr("-Infinity\n"));
  EXPECT_THAT(text, HasSubstr("NaN,\n"));
  EXPECT_THAT(text, HasSubstr("1e-05\n"));
  EXPECT_THAT(text, HasSubstr("\"note\": \"Infinity\""));
  EXPECT_THAT(text, HasSubstr("\"big\": 100000000000000000000"));
  EXPECT_THAT(text, HasSubstr("quantization_config"));
}

// A base shard, an overlay of one tensor, and an index that says which is which.
TEST_F(SmallModel, TheIndexsOverlayIsWhatIsQuantizedAndTheStaleCopyIsANote) {
  std::filesystem::rename(in_ + "/model.safetensors", in_ + "/model-00001-of-00001.safetensors");
  const TestTensor fresh = Bf16Tensor("model.norm.weight", {64}, 99);
  WriteSafetensors(in_ + "/model-overlay.safetensors", {fresh});
  OrderedJson index = {{"metadata", {{"total_size", 1}}}};
  for (const TestTensor& made : tensors_) index["weight_map"][made.tensor.name] = "model-00001-of-00001.safetensors";
  index["weight_map"][fresh.tensor.name] = "model-overlay.safetensors";
  WriteText(in_ + "/model.safetensors.index.json", index.dump());
  const QuantizeReport report = QuantizeOrDie(in_, out_, {});
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("1 tensor which the index places in another shard: "
                                                  "'model.norm.weight' in 'model-00001-of-00001.safetensors'")));
  EXPECT_EQ(Copy(*OpenOrDie(out_)->Find("model.norm.weight")), fresh.bytes);
}

TEST_F(SmallModel, RulesAndTheCheckpointsOwnListAreHonoured) {
  WriteText(in_ + "/config.json",
            R"({"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128],
                "modules_to_not_convert":["model.layers.0.self_attn.q_proj"]}})");
  const QuantizeReport report = QuantizeOrDie(in_, out_, {});
  EXPECT_EQ(report.quantized_tensors, 1);
  EXPECT_THAT(ModulesToNotConvert(OpenOrDie(out_)->config()),
              ElementsAre("lm_head", "model.embed_tokens", "model.layers.0.self_attn.q_proj"));
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
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("quantization_config.quant_method \"awq\""));
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
