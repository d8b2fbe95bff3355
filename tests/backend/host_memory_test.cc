// What the host backend's memory does beyond the contract: POSIX shared memory between processes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "server/backend/host/memory.h"
#include "tests/backend/contract/agent.h"

namespace wsync::host {
namespace {

using contract::FailsWith;

class HostMemoryTest : public testing::Test {
 protected:
  SharedMemoryHandle Share(int64_t bytes) {
    MemoryHandle handle;
    auto buffer = memory_.AllocateShared(bytes, "a test", &handle);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    buffer_ = *std::move(buffer);
    return std::get<SharedMemoryHandle>(handle);
  }
  absl::Status OpenStatus(const MemoryHandle& handle) { return memory_.Open(handle, Access::kRead).status(); }

  HostMemory memory_;
  std::unique_ptr<Buffer> buffer_;
};

TEST_F(HostMemoryTest, AnotherProcessSeesAndChangesWhatIsShared) {
  const SharedMemoryHandle handle = Share(100'000);
  buffer_->data()[99'999] = std::byte{1};
  const pid_t child = fork();
  if (child == 0) {
    auto opened = HostMemory().Open(handle, Access::kReadWrite);
    if (!opened.ok() || (*opened)->bytes() != 100'000 || (*opened)->data()[99'999] != std::byte{1}) _exit(1);
    (*opened)->data()[0] = std::byte{2};
    _exit(0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(buffer_->data()[0], std::byte{2});
}

TEST_F(HostMemoryTest, OnlyTheOwnerMayOpenASegmentAndItsNameGoesWithTheBuffer) {
  const SharedMemoryHandle handle = Share(100);
  struct stat info = {};
  ASSERT_EQ(stat(("/dev/shm" + handle.name).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  buffer_ = nullptr;
  EXPECT_THAT(OpenStatus(handle), FailsWith(absl::StatusCode::kNotFound, handle.name));
}

TEST_F(HostMemoryTest, AnOpenMappingOutlivesTheName) {
  const SharedMemoryHandle handle = Share(100);
  const auto opened = memory_.Open(handle, Access::kRead);
  ASSERT_TRUE(opened.ok()) << opened.status();
  buffer_->data()[5] = std::byte{9};
  buffer_ = nullptr;
  EXPECT_EQ((*opened)->data()[5], std::byte{9});
}

TEST_F(HostMemoryTest, AHandleThatClaimsMoreThanThereIsIsRefused) {
  SharedMemoryHandle handle = Share(5000);
  for (const int64_t claim : {int64_t{5001}, int64_t{1} << 50, int64_t{0}, int64_t{-1}}) {
    handle.bytes = claim;
    EXPECT_THAT(OpenStatus(handle), FailsWith(absl::StatusCode::kInvalidArgument, "the segment has 5000"));
  }
}

TEST_F(HostMemoryTest, MalformedNamesAreRefused) {
  const std::string names[] = {"",
                               "/",
                               "wsync",
                               "/a/b",
                               "/../etc",
                               "/..",
                               "/.",
                               std::string("/a\0b", 4),
                               "/a b",
                               "/a\nb",
                               "/" + std::string(300, 'a')};
  for (const std::string& name : names) {
    EXPECT_THAT(OpenStatus(SharedMemoryHandle{name, 1}),
                FailsWith(absl::StatusCode::kInvalidArgument, "malformed name"))
        << name;
  }
}

TEST_F(HostMemoryTest, AHandleOfTheCudaBackendIsRefused) {
  EXPECT_THAT(OpenStatus(CudaIpcHandle{.handle = std::string(64, 'x'), .bytes = 1}),
              FailsWith(absl::StatusCode::kInvalidArgument, "CUDA IPC"));
}

TEST_F(HostMemoryTest, AReadOnlyMappingCannotBeWritten) {
  const SharedMemoryHandle handle = Share(100);
  const auto opened = memory_.Open(handle, Access::kRead);
  ASSERT_TRUE(opened.ok());
  const int null_device = open("/dev/zero", O_RDONLY);
  EXPECT_EQ(read(null_device, (*opened)->data(), 1), -1);  // EFAULT: the kernel cannot write there either
  close(null_device);
}

TEST_F(HostMemoryTest, ASegmentLargerThanDevShmIsRefusedWithoutLeavingAName) {
  struct statvfs stats = {};
  ASSERT_EQ(statvfs("/dev/shm", &stats), 0);
  const auto free_bytes = static_cast<int64_t>(stats.f_bavail * stats.f_frsize);
  MemoryHandle handle = SharedMemoryHandle{"/untouched", 0};
  EXPECT_THAT(memory_.AllocateShared(free_bytes + (int64_t{1} << 40), "weights", &handle).status(),
              FailsWith(absl::StatusCode::kResourceExhausted, "for weights"));
  EXPECT_EQ(std::get<SharedMemoryHandle>(handle).name, "/untouched");
}

TEST_F(HostMemoryTest, AnEventIsRefusedSayingThatThereAreNoStreams) {
  EXPECT_THAT(memory_.CheckEvent({std::string(64, 'x'), "GPU-1"}),
              FailsWith(absl::StatusCode::kFailedPrecondition, "transfer.backend"));
}

}  // namespace
}  // namespace wsync::host
