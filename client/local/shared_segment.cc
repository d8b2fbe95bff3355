#include "client/local/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace wsync {
namespace {

std::string RandomName() {
  uint64_t random[2] = {};
  for (size_t got = 0; got < sizeof(random);) {
    const ssize_t n = getrandom(reinterpret_cast<char*>(random) + got, sizeof(random) - got, 0);
    if (n > 0) got += n;
  }
  return absl::StrFormat("/wsync-%016x%016x", random[0], random[1]);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedSegment>> SharedSegment::Create(int64_t bytes, const std::string& purpose) {
  if (bytes <= 0) return absl::InvalidArgumentError(absl::StrCat(purpose, ": there are no bytes to share"));
  const std::string name = RandomName();
  const int fd = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat(purpose, ": cannot create shared memory; is /dev/shm mounted?"));
  }
  shm_unlink(name.c_str());
  int error = posix_fallocate(fd, 0, bytes);
  void* data = MAP_FAILED;
  if (error == 0) {
    data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) error = errno;
  }
  if (error != 0) {
    close(fd);
    if (error == ENOSPC || error == ENOMEM) {
      return absl::ResourceExhaustedError(absl::StrCat(purpose, ": shared memory cannot hold ", bytes >> 20,
                                                       " MiB; free some, or enlarge it with 'mount -o "
                                                       "remount,size=... /dev/shm' (docker: --shm-size)"));
    }
    return absl::ErrnoToStatus(error, absl::StrCat(purpose, ": cannot map ", bytes, " bytes of shared memory"));
  }
  return std::unique_ptr<SharedSegment>(new SharedSegment(fd, static_cast<std::byte*>(data), bytes));
}

SharedSegment::~SharedSegment() {
  munmap(data_, bytes_);
  close(fd_);
}

MemoryHandle SharedSegment::handle() const {
  return SharedMemoryHandle{absl::StrCat("/proc/", getpid(), "/fd/", fd_), bytes_};
}

}  // namespace wsync
