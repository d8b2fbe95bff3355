#include "client/local/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/core/available_memory.h"

namespace wsync {
namespace {

absl::Status CannotHold(int64_t bytes, const std::string& purpose) {
  return absl::ResourceExhaustedError(absl::StrCat(purpose, ": there is no memory for ", bytes >> 20,
                                                   " MiB to share: ", AvailableMemory() >> 20,
                                                   " MiB are available; free some, or take another machine"));
}

// The error number, or 0: every page is there, and the size is what it will always be.
int ReserveAndSeal(int fd, int64_t bytes) {
  int error = 0;
  do {
    error = posix_fallocate(fd, 0, bytes);
  } while (error == EINTR);
  if (error != 0) return error;
  return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 ? 0 : errno;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Create(int64_t bytes, const std::string& purpose) {
  if (bytes <= 0) return absl::InvalidArgumentError(absl::StrCat(purpose, ": there are no bytes to share"));
  if (bytes > AvailableMemory()) return CannotHold(bytes, purpose);
  const int fd = memfd_create("wsync", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat(purpose, ": cannot create shared memory"));
  int error = ReserveAndSeal(fd, bytes);
  void* data = MAP_FAILED;
  if (error == 0) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  if (error == 0) return std::unique_ptr<SharedSegment>(new SharedSegment(fd, static_cast<std::byte*>(data), bytes));
  close(fd);
  if (error == ENOSPC || error == ENOMEM) return CannotHold(bytes, purpose);
  return absl::ErrnoToStatus(error, absl::StrCat(purpose, ": cannot map ", bytes, " bytes of shared memory"));
}

SharedSegment::~SharedSegment() {
  munmap(data_, bytes_);
  close(fd_);
}

MemoryHandle SharedSegment::handle() const {
  return SharedMemoryHandle{absl::StrCat("/proc/", getpid(), "/fd/", fd_), bytes_};
}

}  // namespace wsync
