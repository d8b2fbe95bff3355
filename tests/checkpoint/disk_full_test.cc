// A disk that fills, for real: on a tiny file system where this process may mount one, and by a file size limit.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "client/checkpoint/checkpoint_writer.h"
#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// 1 MiB of tmpfs for as long as the object lives.
class TinyFileSystem {
 public:
  explicit TinyFileSystem(const std::string& where) : where_(where) {
    std::filesystem::create_directory(where);
    mounted_ = mount("tmpfs", where.c_str(), "tmpfs", 0, "size=1m") == 0;
  }
  ~TinyFileSystem() {
    if (mounted_) umount(where_.c_str());
  }
  TinyFileSystem(const TinyFileSystem&) = delete;
  TinyFileSystem& operator=(const TinyFileSystem&) = delete;
  bool mounted() const { return mounted_; }

 private:
  const std::string where_;
  bool mounted_;
};

// Files may not grow beyond `bytes` while the object lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    previous_handler_ = signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit = {bytes, previous_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &previous_);
    signal(SIGXFSZ, previous_handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit previous_;
  void (*previous_handler_)(int);
};

const std::vector<Tensor> kTwoMegabytes = {{"a.weight", Dtype::kU8, {1024, 1024}},
                                           {"b.weight", Dtype::kU8, {1024, 1024}}};

TEST(DiskFull, ShowsBeforeAnyWorkAndLeavesNothing) {
  const TemporaryDirectory directory;
  const TinyFileSystem disk(directory / "disk");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  const auto writer = CheckpointWriter::Create(directory / "disk/out", kTwoMegabytes, {});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kResourceExhausted) << writer.status();
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("free space there or choose another directory"));
  EXPECT_THAT(FilesIn(directory / "disk"), ElementsAre());
}

TEST(DiskFull, WhileTheSmallFilesAreWrittenShowsBeforeAnyWorkAndLeavesNothing) {
  const TemporaryDirectory directory;
  const TinyFileSystem disk(directory / "disk");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  std::filesystem::create_directory(directory / "source");
  WriteText(directory / "source/tokenizer.json", std::string(400 << 10, 't'));
  const absl::Status status = CheckpointWriter::Create(directory / "disk/out", {{"a.weight", Dtype::kU8, {700, 1024}}},
                                                       {.copy_from = directory / "source"})
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json"));
  EXPECT_THAT(FilesIn(directory / "disk"), ElementsAre());
}

TEST(DiskFull, FileSizeLimitDuringAWriteLeavesNothing) {
  const TemporaryDirectory directory;
  {
    auto writer = CheckpointWriter::Create(directory / "out", kTwoMegabytes, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    const FileSizeLimit limit(1 << 20);
    const absl::Status second = (*writer)->Write(1, RandomBytes(1 << 20, 2));
    EXPECT_FALSE(second.ok());
    EXPECT_THAT(std::string(second.message()), HasSubstr("ulimit -f"));
    EXPECT_FALSE((*writer)->Finish().ok());
  }
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre());
}

TEST(DiskFull, FileSizeLimitBelowAShardShowsAtOnce) {
  const TemporaryDirectory directory;
  const FileSizeLimit limit(1 << 20);
  const auto writer = CheckpointWriter::Create(directory / "out", kTwoMegabytes, {});
  EXPECT_FALSE(writer.ok());
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("ulimit -f"));
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre());
}

}  // namespace
}  // namespace wsync
