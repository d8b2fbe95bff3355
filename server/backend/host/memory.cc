#include "server/backend/host/memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/backend/host/random.h"
#include "server/core/available_memory.h"
#include "server/core/guarded_range.h"

namespace wsync::host {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kHugePagesFrom = int64_t{8} << 20;  // below it, alignment would waste more than huge pages save
constexpr size_t kMaxNameBytes = 250;                 // NAME_MAX is 255
constexpr char kSharedMemoryFolder[] = "/dev/shm";

class Mapping final : public Buffer {
 public:
  Mapping(void* data, int64_t bytes, std::string name_to_unlink) : unlink_(std::move(name_to_unlink)) {
    data_ = static_cast<std::byte*>(data);
    bytes_ = bytes;
  }
  ~Mapping() override {
    guard_ = nullptr;
    munmap(data_, static_cast<size_t>(bytes_));
    if (!unlink_.empty()) shm_unlink(unlink_.c_str());
  }
  absl::Status Guard() {
    auto guard = GuardedRange::Create(data_, bytes_);
    if (guard.ok()) guard_ = *std::move(guard);
    return guard.status();
  }

 private:
  const std::string unlink_;
  std::unique_ptr<GuardedRange> guard_;  // of memory that is lent; null: it is our own
};

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

std::string Reason(int error) { return std::error_code(error, std::generic_category()).message(); }

int64_t FreeSharedMemory() {
  struct statvfs stats = {};
  if (statvfs(kSharedMemoryFolder, &stats) != 0) return 0;
  return static_cast<int64_t>(stats.f_bavail * stats.f_frsize);
}

absl::Status Exhausted(int64_t bytes, const std::string& purpose, const std::string& where, int64_t available) {
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot allocate ", bytes, " bytes of ", where, " for ", purpose, ": ", available,
                   " bytes are available; free some, or choose a memory mode that needs less (ring, in_place)"));
}

absl::Status CheckRequest(int64_t bytes, const std::string& purpose) {
  if (bytes <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot allocate ", bytes, " bytes for ", purpose, ": a buffer has at least one byte"));
  }
  // The kernel promises more than it has and kills the process when the pages are touched: refuse before that.
  const int64_t available = AvailableMemory();
  return bytes > available ? Exhausted(bytes, purpose, "memory", available) : absl::OkStatus();
}

// A mapping that starts at a huge page, so that the kernel can back all of it with huge pages.
void* MapHugeAligned(int64_t bytes) {
  const int64_t padded = bytes + kHugePage;
  void* base = mmap(nullptr, static_cast<size_t>(padded), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return MAP_FAILED;
  const auto begin = reinterpret_cast<uintptr_t>(base);
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t data = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (data + static_cast<uintptr_t>(bytes) + page - 1) / page * page;
  const uintptr_t padded_end = (begin + static_cast<uintptr_t>(padded) + page - 1) / page * page;
  if (data > begin) munmap(base, data - begin);
  if (padded_end > end) munmap(reinterpret_cast<void*>(end), padded_end - end);
  madvise(reinterpret_cast<void*>(data), static_cast<size_t>(bytes), MADV_HUGEPAGE);  // best effort
  return reinterpret_cast<void*>(data);
}

absl::Status CheckName(std::string_view name) {
  if (IsProcessFile(name)) return absl::OkStatus();
  const std::string_view rest = name.substr(std::min<size_t>(1, name.size()));
  const bool well_formed =
      name.size() >= 2 && name.size() <= kMaxNameBytes && name[0] == '/' && rest != "." && rest != ".." &&
      std::all_of(rest.begin(), rest.end(), [](unsigned char c) { return absl::ascii_isgraph(c) && c != '/'; });
  if (well_formed) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot open shared memory: malformed name of ", name.size(),
                                                 " bytes; a name is '/' and up to ", kMaxNameBytes - 1,
                                                 " printable characters other than '/'"));
}

absl::Status OpenError(const std::string& name, int error) {
  const std::string text = absl::StrCat("cannot open shared memory '", name, "': ", Reason(error));
  if (error == ENOENT) return absl::NotFoundError(absl::StrCat(text, "; does the process that exported it still run?"));
  if (error == EACCES || error == EPERM) {
    return absl::PermissionDeniedError(absl::StrCat(text, "; run both processes as the same user"));
  }
  return absl::InvalidArgumentError(text);
}

// A descriptor that only names the file: opening a FIFO waits for somebody, and opening a device may do anything.
int NameShared(const std::string& name) {
  if (IsProcessFile(name)) return open(name.c_str(), O_PATH | O_CLOEXEC);  // a link, to what that process has open
  return open(absl::StrCat(kSharedMemoryFolder, name).c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW);
}

// Shared memory only: another file could be cut short under the mapping by anybody who may write to it.
absl::Status CheckKind(int fd, const struct stat& info, const std::string& name) {
  struct statfs system = {};
  if (fstatfs(fd, &system) != 0) return OpenError(name, errno);
  if (S_ISREG(info.st_mode) && system.f_type == TMPFS_MAGIC) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot open shared memory '", name, "': it is not shared memory"));
}

// What belongs to a third user could be changed and cut short by that one. Root may lend and borrow what it likes.
absl::Status CheckOwner(const struct stat& info, const std::string& name) {
  const uid_t self = geteuid();
  if (self == 0 || info.st_uid == 0 || info.st_uid == self) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("cannot open shared memory '", name, "': it belongs to user ",
                                                  info.st_uid, ", this agent runs as user ", self,
                                                  "; run both processes as the same user"));
}

absl::Status CheckSize(const struct stat& info, const SharedMemoryHandle& handle) {
  if (handle.bytes <= 0 || info.st_size < handle.bytes) {
    return absl::InvalidArgumentError(absl::StrCat("cannot open shared memory '", handle.name, "': the handle claims ",
                                                   handle.bytes, " bytes, the segment has ", info.st_size));
  }
  // Pages that nobody touched are made when they are first touched, which would be here.
  const int64_t missing = handle.bytes - static_cast<int64_t>(info.st_blocks) * 512;
  if (missing <= 0 || missing <= AvailableMemory()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot open shared memory '", handle.name, "': ", missing, " of its ", handle.bytes,
                   " bytes do not exist yet, and there is no memory for them; let who lends it reserve them first "
                   "(posix_fallocate)"));
}

// OK: a segment that is safe to open and large enough.
absl::Status CheckSegment(int fd, const SharedMemoryHandle& handle) {
  struct stat info = {};
  if (fstat(fd, &info) != 0) return OpenError(handle.name, errno);
  if (absl::Status status = CheckKind(fd, info, handle.name); !status.ok()) return status;
  if (absl::Status status = CheckOwner(info, handle.name); !status.ok()) return status;
  return CheckSize(info, handle);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Buffer>> HostMemory::Allocate(int64_t bytes, std::string_view purpose) {
  if (absl::Status status = CheckRequest(bytes, std::string(purpose)); !status.ok()) return status;
  void* data = bytes >= kHugePagesFrom ? MapHugeAligned(bytes)
                                       : mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return Exhausted(bytes, std::string(purpose), "memory", AvailableMemory());
  return std::make_unique<Mapping>(data, bytes, "");
}

absl::StatusOr<std::unique_ptr<Buffer>> HostMemory::AllocateShared(int64_t bytes, std::string_view purpose,
                                                                   MemoryHandle* handle) {
  if (absl::Status status = CheckRequest(bytes, std::string(purpose)); !status.ok()) return status;
  const std::string name = absl::StrCat("/wsync-", getpid(), "-", RandomHex128());
  const FileDescriptor fd(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
  if (fd.get() < 0) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot create shared memory of ", bytes, " bytes for ",
                                                     std::string(purpose), " in ", kSharedMemoryFolder, ": ",
                                                     Reason(errno)));
  }
  int error = 0;
  do {
    error = posix_fallocate(fd.get(), 0, bytes);
  } while (error == EINTR);
  void* data = error != 0 ? MAP_FAILED
                          : mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) {
    shm_unlink(name.c_str());
    return Exhausted(bytes, std::string(purpose), "shared memory (/dev/shm)", FreeSharedMemory());
  }
  *handle = SharedMemoryHandle{.name = name, .bytes = bytes};
  return std::make_unique<Mapping>(data, bytes, name);
}

absl::StatusOr<std::unique_ptr<Buffer>> HostMemory::Open(const MemoryHandle& handle, Access access) {
  const auto* shared = std::get_if<SharedMemoryHandle>(&handle);
  if (shared == nullptr) {
    return absl::InvalidArgumentError(
        "cannot open a CUDA IPC handle on the host backend; export shared memory, or run the agent with the cuda "
        "backend");
  }
  if (absl::Status status = CheckName(shared->name); !status.ok()) return status;
  const FileDescriptor named(NameShared(shared->name));
  if (named.get() < 0) return OpenError(shared->name, errno);
  if (absl::Status status = CheckSegment(named.get(), *shared); !status.ok()) return status;
  const bool write = access == Access::kReadWrite;
  const FileDescriptor fd(
      open(absl::StrCat("/proc/self/fd/", named.get()).c_str(), (write ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (fd.get() < 0) return OpenError(shared->name, errno);
  void* data = mmap(nullptr, static_cast<size_t>(shared->bytes), write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                    fd.get(), 0);
  if (data == MAP_FAILED) return OpenError(shared->name, errno);
  auto mapping = std::make_unique<Mapping>(data, shared->bytes, "");
  if (absl::Status status = mapping->Guard(); !status.ok()) return status;
  return mapping;
}

absl::Status HostMemory::CheckEvent(const EventHandle&) const {
  return absl::FailedPreconditionError(
      "the host backend has no streams to put in order by CUDA events: leave the events out and wait for the agent's "
      "word, or run the agent with the cuda backend (transfer.backend)");
}

absl::StatusOr<std::unique_ptr<StreamEvent>> HostMemory::OpenEvent(const EventHandle& handle) {
  return CheckEvent(handle);
}

}  // namespace wsync::host
