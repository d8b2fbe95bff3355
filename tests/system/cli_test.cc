// The wsync command as a person or a script uses it: exit codes, texts, files.
#include <sys/mount.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "tests/system/system_testing.h"

namespace wsync::cli {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Cli : public System {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "wsync-cli-" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override {
    umount((directory_ + "/disk").c_str());  // of the one test that mounts it, however it ended
    std::filesystem::remove_all(directory_);
  }

  // SmallModel() with random weights as a checkpoint directory.
  std::string WriteModel() {
    const std::string path = directory_ + "/model";
    CheckpointOptions options;
    options.config = OrderedJson{{"model_type", "qwen2"}};
    auto writer = CheckpointWriter::Create(path, SmallModel(), options);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (size_t i = 0; i < SmallModel().size(); ++i) {
      std::vector<std::byte> bytes(BytesOf(SmallModel()[i]));
      FillRandomBf16(bytes.data(), static_cast<int64_t>(bytes.size() / 2), i + 1);
      EXPECT_TRUE((*writer)->Write(static_cast<int64_t>(i), bytes).ok());
    }
    EXPECT_TRUE((*writer)->Finish().ok());
    return path;
  }
  std::string directory_;
};

TEST_F(Cli, EveryCommandHasHelpWithExamples) {
  for (const char* command :
       {"status", "verify", "publish", "export", "quantize", "plan", "config show", "bench", "doctor", "demo"}) {
    const Run run = Wsync(absl::StrCat(command, " --help"));
    EXPECT_EQ(run.exit_code, 0) << command;
    EXPECT_THAT(run.output, HasSubstr("Examples:")) << command;
  }
}

// It was taken for a setting that was not made: the command then looked for its coordinator somewhere else.
TEST_F(Cli, AMistypedVariableIsRefusedAsTheDaemonsDo) {
  setenv("WSYNC_COORDINATR", "127.0.0.1:9", 1);
  const Run status = Wsync("status --timeout 1"), help = Wsync("status --help");
  unsetenv("WSYNC_COORDINATR");
  EXPECT_EQ(status.exit_code, 2);
  EXPECT_EQ(status.output, "wsync: environment WSYNC_COORDINATR: no such key; did you mean WSYNC_COORDINATOR?\n");
  EXPECT_EQ(help.exit_code, 0);
}

TEST_F(Cli, NobodyThereExitsWithFourAndSaysWhere) {
  const Run status = Wsync("status -c 127.0.0.1:9 --timeout 1");
  EXPECT_EQ(status.exit_code, 4);
  EXPECT_THAT(status.output, AllOf(HasSubstr("127.0.0.1:9"), HasSubstr("wsync-trainer")));
  const Run publish = Wsync(absl::StrCat("publish --model ", WriteModel(), " -s unix://", directory_, "/none.sock"));
  EXPECT_EQ(publish.exit_code, 4);
  EXPECT_THAT(publish.output, HasSubstr("none.sock"));
}

TEST_F(Cli, MissingModelIsAnErrorThatNamesIt) {
  const Run run = Wsync(absl::StrCat("plan --model ", directory_, "/nothing"));
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.output, HasSubstr(directory_ + "/nothing"));
}

TEST_F(Cli, PlanSaysWhatAndWhy) {
  const std::string model = WriteModel();
  const Run table = Wsync("plan --model " + model);
  EXPECT_EQ(table.exit_code, 0) << table.output;
  EXPECT_THAT(table.output,
              AllOf(HasSubstr("17 tensors, 9 quantized"), HasSubstr("embedding"), HasSubstr("wsync-rollout")));
  EXPECT_THAT(table.output, Not(HasSubstr("\033")));  // not a terminal: no colour
  const Run json = Wsync("plan -o json --model " + model);
  const auto parsed = nlohmann::json::parse(json.output, nullptr, false);
  ASSERT_FALSE(parsed.is_discarded()) << json.output;
  EXPECT_EQ(parsed["quantized_tensors"], 9);
  EXPECT_EQ(parsed["catalog"].size(), 17u);
}

TEST_F(Cli, PlanForGpusCountsCudaAndNcclInsteadOfTheProcess) {
  const Run table = Wsync("plan --device --shapes qwen2.5-0.5b");
  EXPECT_EQ(table.exit_code, 0) << table.output;
  EXPECT_THAT(table.output, AllOf(HasSubstr("TAKES ON ITS GPU"), HasSubstr("CUDA and NCCL")));
  const auto total = [this](const std::string& flags) {
    const Run run = Wsync("plan --shapes qwen2.5-0.5b -o json " + flags);
    const auto parsed = nlohmann::json::parse(run.output, nullptr, false);
    return parsed.is_discarded() ? int64_t{0} : parsed["memory"]["trainer_full"]["total_bytes"].get<int64_t>();
  };
  EXPECT_GT(total("--device"), total("") + 1'000'000'000);
}

// A slip in a glob is no error, but nobody would notice it either.
TEST_F(Cli, GlobsThatMatchNothingAreTold) {
  const std::string model = WriteModel();
  for (const std::string command : {"plan -o json --model ", "quantize --overwrite "}) {
    const std::string out = command.starts_with("quantize") ? absl::StrCat(" ", directory_, "/fp8") : "";
    const Run run = Wsync(absl::StrCat(command, model, out, " --exclude '*.layer.0.*' '*.layers.0.*'"));
    EXPECT_EQ(run.exit_code, 0) << run.output;
    EXPECT_THAT(run.output, AllOf(HasSubstr("note: glob '*.layer.0.*' in 'exclude' matches no tensor's name"),
                                  Not(HasSubstr("'*.layers.0.*' in 'exclude'"))));
  }
  Start(0, {{"recipe.include", "*.visoin.*"}});
  RegisterModel(0);
  std::ifstream log(cluster_->directory() + "/trainer.log");
  const std::string lines{std::istreambuf_iterator<char>(log), {}};
  EXPECT_THAT(lines, HasSubstr("recipe: glob '*.visoin.*' in 'include' matches no tensor's name"));
}

// Names of a file may hold what would clear a screen, retitle a window or turn a line around.
TEST_F(Cli, NamesOfACheckpointAreShownEscapedInTablesErrorsAndJson) {
  const std::string name = "model.模型\u202E\u009B2J.weight", file = directory_ + "/x.safetensors";
  auto writer = SafetensorsWriter::Create(file, {{name, Dtype::kF32, {4}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Write(0, std::vector<std::byte>(16, std::byte{0xff})).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  const std::string table = Wsync("plan --all --model " + file).output,
                    json = Wsync("plan -o json --model " + file).output;
  const std::string error = Wsync(absl::StrCat("quantize ", file, " ", directory_, "/out")).output;
  for (const std::string& text : {table, json, error}) {
    for (const char* raw : {"\x1b", "\xc2\x9b", "\u202E"}) EXPECT_THAT(text, Not(HasSubstr(raw)));
    EXPECT_THAT(text, HasSubstr("模型\\u202e"));
  }
  EXPECT_THAT(error, AllOf(HasSubstr("\\x9b2J.weight"), HasSubstr("it has NaN")));
  EXPECT_EQ(nlohmann::json::parse(json)["catalog"][0]["name"], name);
}

TEST_F(Cli, OverwriteTakesNothingButWhatWsyncWrote) {
  const std::string model = WriteModel(), out = directory_ + "/fp8";
  const std::string quantize = absl::StrCat("quantize --overwrite ", model, " ");
  EXPECT_EQ(Wsync(quantize + out).exit_code, 0);
  EXPECT_EQ(Wsync(quantize + out).exit_code, 0);
  std::ofstream(out + "/notes.txt") << "mine";
  EXPECT_THAT(Wsync(quantize + out).output, AllOf(HasSubstr("'notes.txt', which wsync did not write"), HasSubstr(out)));
  EXPECT_TRUE(std::filesystem::exists(out + "/notes.txt"));
  EXPECT_THAT(Wsync(quantize + model).output, HasSubstr("it is, or holds, what is read"));
  EXPECT_THAT(Wsync(quantize + directory_).output, HasSubstr("it is, or holds, what is read"));
  const Run single = Wsync(absl::StrCat("quantize --overwrite ", out, "/model.safetensors ", out));
  EXPECT_THAT(single.output, HasSubstr("it is, or holds, what is read"));
}

// A causal mask, through agents as through the offline quantizer.
TEST_F(Cli, AllowedInfinitiesAreQuantizedAndPublishedAndOthersNameTheFlag) {
  const std::string model = directory_ + "/mask.safetensors";
  auto writer = SafetensorsWriter::Create(model, {{"model.attn_mask", Dtype::kBF16, {4, 4}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  std::vector<std::byte> mask(32, std::byte{0x80});
  for (size_t i = 1; i < mask.size(); i += 2) mask[i] = std::byte{0xff};
  ASSERT_TRUE((*writer)->Write(0, mask).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  const std::string quantize = absl::StrCat("quantize ", model, " ", directory_, "/fp8");
  EXPECT_THAT(Wsync(quantize).output, HasSubstr("--allow-infinities 'model.attn_mask'"));
  EXPECT_EQ(Wsync(quantize + " --allow-infinities '*_mask'").exit_code, 0);
  Start(1, {{"coordinator.min_replicas", "0"}, {"recipe.allow_infinities", "*_mask"}});
  engines_.clear();
  const Run published = Wsync(absl::StrCat("publish --model ", model, " -s ", cluster_->trainer_socket()));
  EXPECT_EQ(published.exit_code, 0) << published.output;
  const Run exported = Wsync(absl::StrCat("export --out ", directory_, "/out -s ", cluster_->rollout_socket(0)));
  ASSERT_EQ(exported.exit_code, 0) << exported.output;
  const auto checkpoint = Checkpoint::Open(directory_ + "/out");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE(std::equal(mask.begin(), mask.end(), (*checkpoint)->tensors()[0].data));
}

TEST_F(Cli, DoctorSaysWhatIsThere) {
  const Run run = Wsync("doctor");
  EXPECT_THAT(run.output,
              AllOf(HasSubstr("SIMD level"), HasSubstr("/dev/shm"), AnyOf(HasSubstr("GPU"), HasSubstr("CUDA"))));
  EXPECT_EQ(run.exit_code, run.output.find("BAD") == std::string::npos ? 0 : 1) << run.output;
}

TEST_F(Cli, ConfigShowsOrigins) {
  const std::string file = directory_ + "/trainer.yaml";
  std::ofstream(file) << "job: rl\ntransfer:\n  bucket_bytes: 64MiB\n";
  const Run run = Wsync(absl::StrCat("config show --effective --config ", file, " --set coordinator.policy=quorum"));
  EXPECT_EQ(run.exit_code, 0) << run.output;
  EXPECT_THAT(run.output, AllOf(HasSubstr("trainer.yaml:3"), HasSubstr("flag"), HasSubstr("default")));
  std::ofstream(file) << "jobb: rl\n";
  const Run bad = Wsync(absl::StrCat("config show --config ", file));  // a file that is given is read
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_THAT(bad.output, AllOf(HasSubstr("trainer.yaml:1"), HasSubstr("jobb"), HasSubstr("job")));
}

TEST_F(Cli, PublishedAndExportedBytesEqualTheOfflineQuantizers) {
  const std::string model = WriteModel();
  Start(1, {{"coordinator.min_replicas", "0"}});
  engines_.clear();  // `wsync export` is the engine here
  const Run published = Wsync(absl::StrCat("publish --model ", model, " --version 3 -s ", cluster_->trainer_socket()));
  ASSERT_EQ(published.exit_code, 0) << published.output;
  EXPECT_THAT(published.output, HasSubstr("version 3 committed"));

  ASSERT_NO_FATAL_FAILURE(RegisterModel(0));
  const Run status = Wsync("status -o json -c " + cluster_->coordinator());
  const auto parsed = nlohmann::json::parse(status.output, nullptr, false);
  ASSERT_FALSE(parsed.is_discarded()) << status.output;
  EXPECT_EQ(parsed["last_version"]["version"], 3);

  const Run quantized = Wsync(absl::StrCat("quantize ", model, " ", directory_, "/fp8"));
  ASSERT_EQ(quantized.exit_code, 0) << quantized.output;
  ASSERT_TRUE(std::filesystem::exists(directory_ + "/fp8/model.safetensors"));
  const auto checkpoint = Checkpoint::Open(directory_ + "/fp8");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), 17u + 9u);
}

// Publishing leaves the version behind: it can be had after the command has ended, and the next one comes after it.
TEST_F(Cli, PublishedVersionOutlivesTheCommandAndTheNextOneIsNewer) {
  const std::string model = WriteModel();
  Start(1, {{"coordinator.min_replicas", "0"}});
  engines_.clear();
  const std::string publish = absl::StrCat("publish --model ", model, " -s ", cluster_->trainer_socket());
  EXPECT_THAT(Wsync(publish + " --version 5").output, HasSubstr("version 5 committed"));
  const Run late = Wsync(absl::StrCat("export --out ", directory_, "/late -s ", cluster_->rollout_socket(0)));
  EXPECT_EQ(late.exit_code, 0) << late.output;
  EXPECT_THAT(late.output, HasSubstr("version 5, 26 tensors"));
  EXPECT_THAT(Wsync(publish).output, HasSubstr("version 6 committed"));
}

TEST_F(Cli, ExportedCheckpointIsByteEqualToQuantize) {
  const std::string model = WriteModel();
  std::ofstream(model + "/config.json") << R"({"time_step_limit": [0.0, Infinity], "model_type": "nemotron_h"})";
  const auto opened = Checkpoint::Open(model);
  ASSERT_TRUE(opened.ok()) << opened.status();
  Start(1);
  auto shared = SharedModel::FromModel(ModelOf(**opened), model, [](int64_t, int64_t) {});
  ASSERT_TRUE(shared.ok()) << shared.status();
  ASSERT_TRUE(shared->Register(*trainer_, {}, false).ok());
  WaitFor([](const v1::JobStatus& s) { return ReadyRollouts(s) == 1; }, "ready");
  ASSERT_TRUE(Publish(1).ok());
  engines_[0]->Stop();
  const Run exported =
      Wsync(absl::StrCat("export --out ", directory_, "/out --like ", model, " -s ", cluster_->rollout_socket(0)));
  ASSERT_EQ(exported.exit_code, 0) << exported.output;
  ASSERT_EQ(Wsync(absl::StrCat("quantize ", model, " ", directory_, "/fp8")).exit_code, 0);
  const auto a = Checkpoint::Open(directory_ + "/out");
  const auto b = Checkpoint::Open(directory_ + "/fp8");
  ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  ASSERT_EQ((*a)->tensors().size(), (*b)->tensors().size());
  for (const TensorView& want : (*b)->tensors()) {
    const TensorView* got = (*a)->Find(want.tensor.name);
    ASSERT_NE(got, nullptr) << want.tensor.name;
    ASSERT_EQ(got->bytes, want.bytes) << want.tensor.name;
    EXPECT_TRUE(std::equal(got->data, got->data + got->bytes, want.data)) << want.tensor.name;
  }
  EXPECT_EQ(DumpJson(*(*a)->config()), DumpJson(*(*b)->config()));
  EXPECT_THAT(DumpJson(*(*a)->config()), HasSubstr("    0.0,\n    Infinity\n"));
}

// A checkpoint made of the golden inputs, through the binary, gives what published quantizers gave for them.
TEST_F(Cli, QuantizeGivesTheGoldenBytes) {
  const auto golden = SafetensorsFile::Open(std::string(WSYNC_TEST_DATA) + "/peers.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  std::map<std::string, const TensorView*> peers;
  std::vector<Tensor> inputs;
  for (const TensorView& view : (*golden)->tensors()) {
    peers[view.tensor.name] = &view;
    if (!view.tensor.name.ends_with(".x")) continue;
    inputs.push_back(view.tensor);
    inputs.back().name.replace(inputs.back().name.size() - 1, 1, "weight");
  }
  ASSERT_EQ(inputs.size(), 14u);
  auto writer = CheckpointWriter::Create(directory_ + "/in", inputs, {});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorView& input = *peers.at(inputs[i].name.substr(0, inputs[i].name.size() - 6) + "x");
    ASSERT_TRUE((*writer)->Write(static_cast<int64_t>(i), {input.data, static_cast<size_t>(input.bytes)}).ok());
  }
  ASSERT_TRUE((*writer)->Finish().ok());
  const auto same = [](const TensorView* a, const TensorView* b) {
    return a != nullptr && a->bytes == b->bytes && std::equal(a->data, a->data + a->bytes, b->data);
  };
  for (const auto& [peer, flags] :
       std::map<std::string, std::string>{{"ieee", ""},
                                          {"deepgemm", "--preset deepgemm"},
                                          {"deepgemm_ue8m0", "--preset deepgemm --scale pow2"},
                                          {"nemo", "--preset nemo"}}) {
    const std::string out = directory_ + "/" + peer;
    const Run run = Wsync(absl::StrCat("quantize ", directory_, "/in ", out, " --include '*' ", flags));
    ASSERT_EQ(run.exit_code, 0) << run.output;
    const auto checkpoint = Checkpoint::Open(out);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    for (const Tensor& input : inputs) {
      const std::string test = input.name.substr(0, input.name.size() - 7);
      // There ieee and nemo divide by zero, and we do not: kernels/quantize.h.
      const bool equal = test != "subnormal_128x128" || peer.starts_with("deepgemm");
      EXPECT_EQ(same((*checkpoint)->Find(input.name), peers.at(test + "." + peer + ".q")), equal)
          << test << " " << peer;
      EXPECT_EQ(same((*checkpoint)->Find(input.name + "_scale_inv"), peers.at(test + "." + peer + ".s")), equal)
          << test << " " << peer;
    }
  }
}

TEST_F(Cli, ExportToADiskThatIsFullLeavesNothing) {
  const std::string disk = directory_ + "/disk";
  std::filesystem::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=256k") != 0) GTEST_SKIP() << "this process may not mount a tmpfs";
  Start(1);
  ASSERT_NO_FATAL_FAILURE(RegisterModel(1));
  ASSERT_TRUE(Publish(1).ok());
  engines_[0]->Stop();
  const Run run = Wsync(absl::StrCat("export --out ", disk, "/out -s ", cluster_->rollout_socket(0)));
  EXPECT_EQ(run.exit_code, 1) << run.output;
  EXPECT_THAT(run.output, AllOf(HasSubstr(disk + "/out"), HasSubstr("free space")));
  EXPECT_TRUE(std::filesystem::is_empty(disk));
}

TEST_F(Cli, ExportWithoutAnyVersionEndsAtItsDeadline) {
  Start(1);
  engines_.clear();
  const Run run =
      Wsync(absl::StrCat("export --out ", directory_, "/out --timeout 0.5 -s ", cluster_->rollout_socket(0)));
  EXPECT_EQ(run.exit_code, 1) << run.output;
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/out"));
}

// What is wrong with a path shows at once, not when a version has come at last.
TEST_F(Cli, ExportLooksAtItsPathsFirst) {
  const std::string model = WriteModel();
  const std::string nobody = absl::StrCat(" -s unix://", directory_, "/none.sock");
  const Run taken = Wsync(absl::StrCat("export --out ", model, nobody));
  EXPECT_EQ(taken.exit_code, 1);
  EXPECT_THAT(taken.output, HasSubstr("it is not empty"));
  const Run unlike = Wsync(absl::StrCat("export --out ", directory_, "/out --like ", directory_, "/nothing", nobody));
  EXPECT_EQ(unlike.exit_code, 1);
  EXPECT_THAT(unlike.output, HasSubstr(directory_ + "/nothing"));
}

TEST_F(Cli, NonFiniteCheckpointLeavesNothingBehind) {
  const std::string model = WriteModel();
  std::fstream file(model + "/model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-2, std::ios::end);
  file.write("\x80\x7f", 2);  // BF16 infinity
  file.close();
  const Run run = Wsync(absl::StrCat("quantize ", model, " ", directory_, "/fp8"));
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.output, HasSubstr("inf"));
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/fp8"));
}

}  // namespace
}  // namespace wsync::cli
