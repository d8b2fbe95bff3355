// What the host backend's memory does beyond the contract: POSIX shared memory between processes.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
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

// Each would hang the agent, end it, or give it what is not the client's to lend.
TEST_F(HostMemoryTest, WhatIsNoSharedMemoryIsRefusedAtOnce) {
  const std::string base = "/wsync-test-" + std::to_string(getpid());
  const std::string path = "/dev/shm" + base;
  const auto refused = FailsWith(absl::StatusCode::kInvalidArgument, "cannot open shared memory");

  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  for (const Access access : {Access::kRead, Access::kReadWrite}) {
    EXPECT_THAT(memory_.Open(SharedMemoryHandle{base, 1}, access).status(), refused) << "a FIFO";
  }
  unlink(path.c_str());
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  EXPECT_THAT(OpenStatus(SharedMemoryHandle{base, 1}), refused) << "a directory";
  rmdir(path.c_str());
  ASSERT_EQ(symlink("/proc/self/exe", path.c_str()), 0);
  EXPECT_THAT(OpenStatus(SharedMemoryHandle{base, 1}), refused) << "a link";
  unlink(path.c_str());

  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int others[] = {ends[0],
                        ends[1],
                        open("/dev/zero", O_RDWR),
                        open("/proc/self/mem", O_RDONLY),
                        open("/", O_RDONLY | O_DIRECTORY),
                        socket(AF_UNIX, SOCK_STREAM, 0)};
  for (const int fd : others) {
    const std::string name = absl::StrCat("/proc/", getpid(), "/fd/", fd);
    EXPECT_FALSE(OpenStatus(SharedMemoryHandle{name, 1}).ok()) << name;
    close(fd);
  }
}

TEST_F(HostMemoryTest, AHoleThatIsLargerThanMemoryIsRefusedBeforeItIsMapped) {
  const int fd = memfd_create("wsync-test", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(fd, int64_t{1} << 50), 0);
  const SharedMemoryHandle handle{absl::StrCat("/proc/", getpid(), "/fd/", fd), int64_t{1} << 50};
  EXPECT_THAT(OpenStatus(handle), FailsWith(absl::StatusCode::kResourceExhausted, "do not exist yet"));
  EXPECT_TRUE(OpenStatus(SharedMemoryHandle{handle.name, 1 << 20}).ok()) << "a hole that fits";
  close(fd);
}

TEST_F(HostMemoryTest, MemoryOfAThirdUserIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to be two other users";
  const SharedMemoryHandle handle = Share(100);
  const std::string path = "/dev/shm" + handle.name;
  ASSERT_EQ(chown(path.c_str(), 12'345, 12'345), 0);
  ASSERT_EQ(chmod(path.c_str(), 0666), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (setresuid(54'321, 54'321, 54'321) != 0) _exit(2);
    _exit(absl::IsPermissionDenied(HostMemory().Open(handle, Access::kRead).status()) ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(OpenStatus(handle).ok()) << "root may lend and borrow what it likes";
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
