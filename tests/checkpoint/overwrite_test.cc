// Overwriting removes what wsync wrote, and nothing else, whatever it is asked.
#include <gmock/gmock.h>

#include <filesystem>

#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "client/checkpoint/manifest.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Overwrite : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(directory_ / "source");
    WriteText(directory_ / "source/tokenizer.json", "{}");
    ASSERT_TRUE(Write(1).ok());
  }

  // One tensor whose every byte is `value`.
  absl::Status Write(uint8_t value, std::vector<std::string>* notes = nullptr, std::string source = "") {
    auto writer = CheckpointWriter::Create(directory_ / "out", {{"x.weight", Dtype::kU8, {100}}},
                                           {.config = OrderedJson{{"model_type", "x"}},
                                            .copy_from = directory_ / "source",
                                            .source = std::move(source),
                                            .overwrite = true});
    if (!writer.ok()) return writer.status();
    const absl::Status written = (*writer)->Write(0, std::vector<std::byte>(100, std::byte{value}));
    if (!written.ok()) return written;
    const absl::Status status = (*writer)->Finish();
    if (notes != nullptr) *notes = (*writer)->notes();
    return status;
  }
  void ExpectHolds(uint8_t value) {
    const auto checkpoint = Checkpoint::Open(directory_ / "out");
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->tensors()[0].data[50], std::byte{value});
  }
  void ExpectRefusedNaming(const std::string& name, const std::string& why) {
    const absl::Status status = Write(2);
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("'" + name + "'"), HasSubstr(why), HasSubstr("move it away")));
    EXPECT_THAT(FilesIn(directory_.path()), testing::Contains("out"));
    EXPECT_EQ(FilesIn(directory_.path()).size(), 2u) << "nothing is left beside it";
  }
  TemporaryDirectory directory_;
};

TEST_F(Overwrite, ReplacesWhatWsyncWroteAsAWhole) {
  const auto before = FilesIn(directory_ / "out");
  EXPECT_THAT(before, ElementsAre("config.json", "model.safetensors", "tokenizer.json", kManifestFileName));
  std::vector<std::string> notes;
  ASSERT_TRUE(Write(2, &notes).ok());
  ExpectHolds(2);
  EXPECT_EQ(FilesIn(directory_ / "out"), before);
  EXPECT_THAT(FilesIn(directory_.path()), ElementsAre("out", "source"));
  EXPECT_THAT(notes, IsEmpty());
  fs::remove(directory_ / "out/tokenizer.json");  // a part of ours is ours
  EXPECT_TRUE(Write(3).ok());
}

TEST_F(Overwrite, RefusesADirectoryWithABystander) {
  WriteText(directory_ / "out/thesis.tex", "years of work");
  ExpectRefusedNaming("thesis.tex", "which wsync did not write");
  EXPECT_EQ(ReadText(directory_ / "out/thesis.tex"), "years of work");
  fs::remove(directory_ / "out/thesis.tex");
  fs::create_directory(directory_ / "out/checkpoint-500");
  ExpectRefusedNaming("checkpoint-500", "which wsync did not write");
  fs::remove(directory_ / "out/checkpoint-500");
  fs::create_symlink("../source", directory_ / "out/link");
  ExpectRefusedNaming("link", "which wsync did not write");
  ExpectHolds(1);
}

TEST_F(Overwrite, RefusesWhatSomebodyElseWroteUnderANameOfOurs) {
  const std::string config = ReadText(directory_ / "out/config.json");
  std::string edited = config;
  edited[edited.find('x')] = 'y';  // of the same length
  WriteText(directory_ / "out/config.json", edited);
  ExpectRefusedNaming("config.json", "was changed since");
  WriteText(directory_ / "out/config.json", config);
  WriteSafetensors(directory_ / "out/model.safetensors", {{{"x.weight", Dtype::kU8, {100}}, RandomBytes(100, 3)}});
  ExpectRefusedNaming("model.safetensors", "was changed since");
}

TEST_F(Overwrite, SeesAnotherLargeFileByItsSamples) {
  const std::string path = directory_ / "out/model.safetensors";
  std::string large(20 << 20, 'a');
  fs::create_directory(directory_ / "large");
  WriteText(directory_ / "large/model.safetensors", large);
  ASSERT_TRUE(WriteManifest(directory_ / "large").ok());
  EXPECT_TRUE(CheckOnlyOurs(directory_ / "large").ok());
  std::fill(large.begin() + (large.size() / 2), large.end(), 'b');
  WriteText(directory_ / "large/model.safetensors", large);
  EXPECT_EQ(CheckOnlyOurs(directory_ / "large").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(Overwrite, RefusesACheckpointThatIsNotWsyncs) {
  fs::remove(directory_ / ("out/" + std::string(kManifestFileName)));
  const absl::Status status = Write(2);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has no wsync.json, so wsync did not write it; move it away"));
  ExpectHolds(1);
}

TEST_F(Overwrite, RefusesAManifestThatMakesNoSense) {
  for (const char* text : {"", "[]", "{}", R"({"files":[]})", R"({"files":{"model.safetensors":{"bytes":-1}}})",
                           R"({"files":{"model.safetensors":7,"config.json":{"bytes":"x","digest":1}}})"}) {
    WriteText(directory_ / ("out/" + std::string(kManifestFileName)), text);
    EXPECT_FALSE(Write(2).ok()) << text;
    ExpectHolds(1);
  }
}

TEST_F(Overwrite, NeverTakesWhatIsReadNorWhatHoldsIt) {
  const absl::Status file = Write(2, nullptr, directory_ / "out/model.safetensors");
  EXPECT_EQ(file.code(), absl::StatusCode::kInvalidArgument) << file;
  EXPECT_THAT(std::string(file.message()), HasSubstr("it is, or holds, what is read"));
  EXPECT_EQ(Write(2, nullptr, directory_ / "out/../out").code(), absl::StatusCode::kInvalidArgument);
  fs::create_symlink("out", directory_ / "alias");
  EXPECT_EQ(Write(2, nullptr, directory_ / "alias/model.safetensors").code(), absl::StatusCode::kInvalidArgument);
  ExpectHolds(1);
}

TEST_F(Overwrite, DoesNotFollowALinkAtTheOutput) {
  fs::rename(directory_ / "out", directory_ / "real");
  fs::create_symlink("real", directory_ / "out");
  const absl::Status status = Write(2);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(status.message()), HasSubstr("it is a link"));
}

// Between the last look and the removal somebody may still put a file there.
TEST_F(Overwrite, KeepsAndNamesWhatCameMeanwhile) {
  WriteText(directory_ / "out/late.txt", "late");
  const absl::Status kept = RemoveOurs(directory_ / "out");
  EXPECT_EQ(kept.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(kept.message()), HasSubstr("'late.txt'"));
  EXPECT_EQ(ReadText(directory_ / "out/late.txt"), "late");
  EXPECT_THAT(FilesIn(directory_ / "out"), ElementsAre("late.txt", kManifestFileName));
}

TEST_F(Overwrite, AFailureMidwayKeepsTheOldCheckpointWhole) {
  {
    auto writer = CheckpointWriter::Create(directory_ / "out", {{"x.weight", Dtype::kU8, {100}}}, {.overwrite = true});
    ASSERT_TRUE(writer.ok()) << writer.status();
    EXPECT_FALSE((*writer)->Finish().ok());
  }
  ExpectHolds(1);
  EXPECT_THAT(FilesIn(directory_.path()), ElementsAre("out", "source"));
}

TEST_F(Overwrite, TheManifestOfASourceIsNotCopied) {
  ASSERT_TRUE(WriteManifest(directory_ / "source").ok());
  ASSERT_TRUE(Write(2).ok());
  EXPECT_TRUE(CheckOnlyOurs(directory_ / "out").ok());
}

}  // namespace
}  // namespace wsync
