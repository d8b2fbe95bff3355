// What is read and copied is what lies in the checkpoint's own directory, and nothing there can be waited for.
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class CheckpointLinks : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(directory_ / "model");
    WriteSafetensors(directory_ / "model/model.safetensors", {Bf16Tensor("x", {2, 2})});
    WriteText(directory_ / "secret.json", "{\"token\": \"of another user\"}");
    WriteText(directory_ / "model/config.json", "{}");
  }
  absl::Status Open() { return Checkpoint::Open(directory_ / "model").status(); }
  absl::Status Write() {
    return CheckpointWriter::Create(directory_ / "out", {{"x", Dtype::kU8, {1}}}, {.copy_from = directory_ / "model"})
        .status();
  }
  // Puts a link to `to` at model/<name>.
  void Link(const std::string& to, const std::string& name) {
    fs::remove(directory_ / ("model/" + name));
    fs::create_symlink(to, directory_ / ("model/" + name));
  }
  TemporaryDirectory directory_;
};

TEST_F(CheckpointLinks, OutOfTheDirectoryAreRefusedByNameAndTarget) {
  const auto refused = AllOf(HasSubstr("config.json': it is a link to"), HasSubstr("/secret.json', outside of"),
                             HasSubstr("copy the file there"));
  for (const std::string& to : {std::string("../secret.json"), directory_ / "secret.json"}) {
    Link(to, "config.json");
    EXPECT_EQ(Open().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(Open().message()), refused);
  }
  Link("config.json", "config.json");
  EXPECT_TRUE(Open().ok()) << "a link to itself leads nowhere, so there is no config.json";
}

TEST_F(CheckpointLinks, OfWeightsAndIndicesAreRefusedToo) {
  fs::rename(directory_ / "model/model.safetensors", directory_ / "elsewhere.safetensors");
  Link("../elsewhere.safetensors", "model.safetensors");
  EXPECT_THAT(std::string(Open().message()), HasSubstr("elsewhere.safetensors', outside of"));
  EXPECT_TRUE(Checkpoint::Open(directory_ / "model/model.safetensors").ok()) << "one that is named alone may be a link";
  fs::remove(directory_ / "model/model.safetensors");
  WriteText(directory_ / "index.json", R"({"weight_map":{"x":"a.safetensors"}})");
  Link("../index.json", kIndexFileName);
  EXPECT_THAT(std::string(Open().message()), HasSubstr("index.json', outside of"));
}

TEST_F(CheckpointLinks, OfFilesToCopyAreRefusedBeforeAnyWork) {
  Link("../secret.json", "tokenizer.json");
  EXPECT_TRUE(Open().ok()) << Open();
  EXPECT_EQ(Write().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Write().message()), HasSubstr("tokenizer.json': it is a link to"));
  EXPECT_THAT(FilesIn(directory_.path()), ElementsAre("model", "secret.json"));
}

TEST_F(CheckpointLinks, ThroughADirectoryThatIsALinkOutAreRefused) {
  fs::create_directory(directory_ / "other");
  WriteText(directory_ / "other/tokenizer.json", "{}");
  fs::create_symlink("../other", directory_ / "model/sub");
  Link("sub/tokenizer.json", "tokenizer.json");
  EXPECT_THAT(std::string(Write().message()), HasSubstr("other/tokenizer.json', outside of"));
}

TEST_F(CheckpointLinks, WithinTheDirectoryAndToItAreFollowed) {
  fs::rename(directory_ / "model/model.safetensors", directory_ / "model/real.safetensors");
  Link("real.safetensors", "model.safetensors");
  EXPECT_TRUE(Open().ok()) << Open();
  fs::create_symlink("model", directory_ / "alias");
  EXPECT_TRUE(Checkpoint::Open(directory_ / "alias").ok()) << Checkpoint::Open(directory_ / "alias").status();
}

// hub/models--o--m/{blobs/<hash>, snapshots/<revision>/<file> -> ../../blobs/<hash>}
TEST_F(CheckpointLinks, ToABlobOfTheSameHubCacheAreFollowedAndToAnotherRepositorysAreNot) {
  for (const char* repository : {"hub/models--o--m", "hub/models--o--other"}) {
    fs::create_directories(directory_ / (std::string(repository) + "/blobs"));
    fs::create_directories(directory_ / (std::string(repository) + "/snapshots/abc"));
  }
  const std::string snapshot = "hub/models--o--m/snapshots/abc";
  fs::copy(directory_ / "model/model.safetensors", directory_ / "hub/models--o--m/blobs/1f");
  WriteText(directory_ / "hub/models--o--m/blobs/2e", "{\"model_type\": \"x\"}");
  fs::create_symlink("../../blobs/1f", directory_ / (snapshot + "/model.safetensors"));
  fs::create_symlink("../../blobs/2e", directory_ / (snapshot + "/config.json"));
  const auto checkpoint = Checkpoint::Open(directory_ / snapshot);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config()->value("model_type", ""), "x");
  fs::remove(directory_ / (snapshot + "/config.json"));
  WriteText(directory_ / "hub/models--o--other/blobs/2e", "{}");
  fs::create_symlink("../../../models--o--other/blobs/2e", directory_ / (snapshot + "/config.json"));
  EXPECT_THAT(std::string(Checkpoint::Open(directory_ / snapshot).status().message()), HasSubstr("outside of"));
}

TEST_F(CheckpointLinks, FifosAndDevicesAreNeitherOpenedNorWaitedFor) {
  fs::remove(directory_ / "model/config.json");
  ASSERT_EQ(mkfifo((directory_ / "model/config.json").c_str(), 0600), 0);
  EXPECT_THAT(std::string(Open().message()), HasSubstr("config.json': it is not a regular file"));
  fs::remove(directory_ / "model/config.json");
  ASSERT_EQ(mkfifo((directory_ / "model/tokenizer.json").c_str(), 0600), 0);
  EXPECT_TRUE(Write().ok()) << "it says nothing about the model";
  fs::remove(directory_ / "model/model.safetensors");
  ASSERT_EQ(mkfifo((directory_ / "model/model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(std::string(Open().message()), HasSubstr("model.safetensors': it is not a regular file"));
  EXPECT_THAT(std::string(SafetensorsFile::Open("/dev/zero").status().message()), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace wsync
