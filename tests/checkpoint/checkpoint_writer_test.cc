#include "client/checkpoint/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include "client/checkpoint/checkpoint.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<TestTensor> kTensors = {
    Bf16Tensor("model.layers.0.w", {5, 10}, 1),   // 100 bytes
    Bf16Tensor("model.layers.1.w", {5, 10}, 2),   // 100
    Bf16Tensor("model.layers.2.w", {25, 10}, 3),  // 500
    Bf16Tensor("model.norm.weight", {5}, 4),      // 10
};

std::vector<Tensor> ListOf(const std::vector<TestTensor>& tensors) {
  std::vector<Tensor> list;
  for (const TestTensor& made : tensors) list.push_back(made.tensor);
  return list;
}

absl::Status WriteAll(const std::string& out, const CheckpointOptions& options,
                      std::vector<std::string>* notes = nullptr) {
  auto writer = CheckpointWriter::Create(out, ListOf(kTensors), options);
  if (!writer.ok()) return writer.status();
  for (size_t i = 0; i < kTensors.size(); ++i) {
    if (absl::Status status = (*writer)->Write(i, kTensors[i].bytes); !status.ok()) return status;
  }
  const absl::Status status = (*writer)->Finish();
  if (notes != nullptr) *notes = (*writer)->notes();
  return status;
}

void ExpectHoldsAll(const std::string& out) {
  const auto checkpoint = Checkpoint::Open(out);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_EQ((*checkpoint)->tensors().size(), kTensors.size());
  for (const TestTensor& made : kTensors) {
    const TensorView* view = (*checkpoint)->Find(made.tensor.name);
    ASSERT_NE(view, nullptr);
    EXPECT_EQ(view->tensor, made.tensor);
    EXPECT_EQ(Copy(*view), made.bytes);
  }
}

TEST(CheckpointWriter, SmallCheckpointIsOneFileWithoutIndex) {
  const TemporaryDirectory directory;
  ASSERT_TRUE(WriteAll(directory / "out/", {}).ok());
  EXPECT_THAT(FilesIn(directory / "out"), ElementsAre("model.safetensors", "wsync.json"));
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre("out"));
  ExpectHoldsAll(directory / "out");
}

TEST(CheckpointWriter, ShardsAreCutInOrderAndIndexed) {
  const TemporaryDirectory directory;
  ASSERT_TRUE(WriteAll(directory / "out", {.max_shard_bytes = 200}).ok());
  EXPECT_THAT(FilesIn(directory / "out"),
              ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                          "model-00003-of-00003.safetensors", "model.safetensors.index.json", "wsync.json"));
  const Json index = Json::parse(ReadText(directory / "out/model.safetensors.index.json"));
  const Json expected = {{"metadata", {{"total_size", 710}}},
                         {"weight_map",
                          {{"model.layers.0.w", "model-00001-of-00003.safetensors"},
                           {"model.layers.1.w", "model-00001-of-00003.safetensors"},
                           {"model.layers.2.w", "model-00002-of-00003.safetensors"},
                           {"model.norm.weight", "model-00003-of-00003.safetensors"}}}};
  EXPECT_EQ(index, expected);
  ExpectHoldsAll(directory / "out");
}

TEST(CheckpointWriter, EveryShardSizeGivesTheSameTensors) {
  for (int64_t bytes = 1; bytes < 800; bytes += 37) {
    const TemporaryDirectory directory;
    ASSERT_TRUE(WriteAll(directory / "out", {.max_shard_bytes = bytes}).ok()) << bytes;
    ExpectHoldsAll(directory / "out");
  }
}

TEST(CheckpointWriter, CopiesOtherFilesButNoWeights) {
  const TemporaryDirectory directory;
  std::filesystem::create_directories(directory / "source/original");
  for (const char* name : {"tokenizer.json", "generation_config.json", "modeling.py", "config.json",
                           "model.safetensors.index.json", "model-00001-of-00001.safetensors", "pytorch_model.bin",
                           "pytorch_model.bin.index.json", "consolidated.00.pth"}) {
    WriteText(directory / (std::string("source/") + name), name);
  }
  std::vector<std::string> notes;
  const OrderedJson config = {{"model_type", "qwen2"}, {"architectures", {"A"}}};
  ASSERT_TRUE(WriteAll(directory / "out", {.config = config, .copy_from = directory / "source"}, &notes).ok());
  EXPECT_THAT(FilesIn(directory / "out"), ElementsAre("config.json", "generation_config.json", "model.safetensors",
                                                      "modeling.py", "tokenizer.json", "wsync.json"));
  EXPECT_EQ(ReadText(directory / "out/tokenizer.json"), "tokenizer.json");
  EXPECT_EQ(ReadText(directory / "out/config.json"), config.dump(2) + "\n");
  EXPECT_THAT(notes, ElementsAre(HasSubstr("'original'")));
}

TEST(CheckpointWriter, IncompleteCheckpointLeavesNothing) {
  const TemporaryDirectory directory;
  {
    auto writer = CheckpointWriter::Create(directory / "out", ListOf(kTensors), {.max_shard_bytes = 200});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const size_t i : {0, 1, 2}) ASSERT_TRUE((*writer)->Write(i, kTensors[i].bytes).ok());
    const absl::Status status = (*writer)->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.norm.weight"));
    EXPECT_FALSE(std::filesystem::exists(directory / "out"));
  }
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre());
}

TEST(CheckpointWriter, ExistingDirectoryIsRefusedUnlessAskedFor) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "out");
  ASSERT_TRUE(WriteAll(directory / "out", {}).ok()) << "an empty directory is no obstacle";
  const absl::Status refused = WriteAll(directory / "out", {});
  EXPECT_EQ(refused.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("not empty"));
  ASSERT_TRUE(WriteAll(directory / "out", {.max_shard_bytes = 200, .overwrite = true}).ok());
  ASSERT_TRUE(WriteAll(directory / "out", {.overwrite = true}).ok());
  EXPECT_THAT(FilesIn(directory / "out"), ElementsAre("model.safetensors", "wsync.json"));
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre("out"));
}

TEST(CheckpointWriter, OverwriteNeverReplacesWhatIsNoCheckpoint) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "home");
  WriteText(directory / "home/thesis.tex", "years of work");
  EXPECT_EQ(WriteAll(directory / "home", {.overwrite = true}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(WriteAll(directory / "home/thesis.tex", {.overwrite = true}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadText(directory / "home/thesis.tex"), "years of work");
}

TEST(CheckpointWriter, FailedOverwriteKeepsTheOldCheckpoint) {
  const TemporaryDirectory directory;
  ASSERT_TRUE(WriteAll(directory / "out", {}).ok());
  {
    auto writer = CheckpointWriter::Create(directory / "out", ListOf(kTensors), {.overwrite = true});
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_FALSE((*writer)->Finish().ok());
  }
  ExpectHoldsAll(directory / "out");
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre("out"));
}

TEST(CheckpointWriter, SourceDirectoryCannotBeTheTarget) {
  const TemporaryDirectory directory;
  ASSERT_TRUE(WriteAll(directory / "model", {}).ok());
  const absl::Status status =
      WriteAll(directory / "model/../model", {.copy_from = directory / "model", .overwrite = true});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("it is, or holds, what is read"));
  ExpectHoldsAll(directory / "model");
}

TEST(CheckpointWriter, ParentThatIsAFileIsNamed) {
  const TemporaryDirectory directory;
  WriteText(directory / "file", "");
  EXPECT_THAT(std::string(WriteAll(directory / "file/sub/out", {}).message()), HasSubstr(directory / "file"));
}

TEST(CheckpointWriter, PartialDirectoryOfAnotherWriterIsNotTouched) {
  const TemporaryDirectory directory;
  const std::string partial = directory / ("out.partial-" + std::to_string(getpid()));
  std::filesystem::create_directory(partial);
  WriteText(partial + "/x", "theirs");
  const absl::Status status = WriteAll(directory / "out", {});
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("one that died left it: then remove it"));
  EXPECT_EQ(ReadText(partial + "/x"), "theirs");
}

}  // namespace
}  // namespace wsync
