#include "client/checkpoint/posix_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

// write(2) moves at most 2 GiB - 4 KiB at once; smaller calls also let a stop request through sooner.
constexpr size_t kMaxWriteBytes = size_t{64} << 20;

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
  int fd_;
};

const char* AdviceFor(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free space there or choose another directory";
    case EFBIG:
      return "; raise the file size limit (ulimit -f) or use smaller shards";
    case EMFILE:
      return "; raise the limit of open files (ulimit -n)";
    case EACCES:
    case EPERM:
      return "; check the owner and mode of the path";
    case EROFS:
      return "; choose a directory on a writable file system";
    case ENOENT:
    case ENOTDIR:
      return "; check the path";
    case EEXIST:
      return "; another process is writing there, or one that died left it: then remove it";
    default:
      return "";
  }
}

absl::StatusOr<int64_t> RegularFileSize(int fd, const std::string& path) {
  struct stat info;
  if (fstat(fd, &info) != 0) return FileError("stat", path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read '", path, "': it is not a regular file"));
  }
  return info.st_size;
}

bool IsBelow(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() + 1 && path.starts_with(directory) && path[directory.size()] == '/';
}

// A hub's cache holds <repository>/blobs/<hash>, and links to them in <repository>/snapshots/<revision>.
bool IsBlobOf(const std::string& path, const std::string& directory) {
  const size_t snapshots = directory.rfind("/snapshots/");
  return snapshots != std::string::npos && IsBelow(path, directory.substr(0, snapshots) + "/blobs");
}

// `real`: where an open file lies.
absl::Status CheckWithin(const std::string& path, const std::string& real, const std::string& within) {
  std::error_code error;
  const std::string directory = std::filesystem::canonical(within, error).string();
  if (error) return FileError("resolve", within, error.value());
  if (IsBelow(real, directory) || IsBlobOf(real, directory)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("cannot read '", path, "': it is a link to '", real, "', outside of '", directory,
                   "', and only what lies in a checkpoint's own directory is read; copy the file there"));
}

}  // namespace

absl::Status FileError(const std::string& tried, const std::string& path, int error) {
  const absl::Status status = absl::ErrnoToStatus(error, absl::StrCat("cannot ", tried, " '", path, "'"));
  return absl::Status(status.code(), absl::StrCat(status.message(), AdviceFor(error)));
}

absl::StatusOr<int> OpenRegularFile(const std::string& path, const std::string& within) {
  const FileDescriptor found(open(path.c_str(), O_PATH | O_CLOEXEC));
  if (found.get() < 0) return FileError("open", path, errno);
  if (const auto size = RegularFileSize(found.get(), path); !size.ok()) return size.status();
  const std::string by_number = absl::StrCat("/proc/self/fd/", found.get());
  if (!within.empty()) {
    std::error_code error;
    const std::string real = std::filesystem::read_symlink(by_number, error).string();
    if (error) return FileError("find out where lies", path, error.value());
    if (absl::Status status = CheckWithin(path, real, within); !status.ok()) return status;
  }
  // The file that was looked at, whatever stands under its name by now.
  const int fd = open(by_number.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return FileError("open", path, errno);
  return fd;
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path, const std::string& within) {
  const auto opened = OpenRegularFile(path, within);
  if (!opened.ok()) return opened.status();
  const int fd = *opened;
  const absl::StatusOr<int64_t> size = RegularFileSize(fd, path);
  std::unique_ptr<MappedFile> file(new MappedFile(path, fd, size.ok() ? static_cast<size_t>(*size) : 0));
  if (!size.ok()) return size.status();
  if (*size == 0) return file;  // mmap refuses zero bytes
  void* data = mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) return FileError("map", path, errno);
  file->data_ = static_cast<const std::byte*>(data);
  auto guard = GuardedRange::Create(data, *size);
  if (!guard.ok()) return guard.status();
  file->guard_ = *std::move(guard);
  return file;
}

MappedFile::~MappedFile() {
  guard_ = nullptr;
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
  close(fd_);
}

absl::Status MappedFile::Intact() const {
  struct stat info = {};
  const bool cut = guard_ != nullptr && guard_->cut();
  // Of a page that is still there in part, the rest reads as zeros without a fault.
  if (!cut && fstat(fd_, &info) == 0 && static_cast<size_t>(info.st_size) >= size_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("'", path_, "' was cut short while it was read (it had ", size_,
                   " bytes): another process writes to it; wait until that is done, or copy it first"));
}

void ReleaseMappedPages(const std::byte* data, int64_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

absl::StatusOr<std::unique_ptr<OutputFile>> OutputFile::Create(const std::string& path, int64_t bytes) {
  const std::filesystem::path target(path);
  const std::string temporary =
      (target.parent_path() / absl::StrCat(".", target.filename().string(), ".partial-", getpid())).string();
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return FileError("create", temporary, errno);
  std::unique_ptr<OutputFile> file(new OutputFile(path, temporary, fd, bytes));
  // The raw system call: glibc's posix_fallocate would write every page where the file system cannot reserve.
  if (bytes > 0 && fallocate(fd, 0, 0, bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
    return FileError(absl::StrCat("reserve ", bytes, " bytes for"), path, errno);
  }
  return file;
}

OutputFile::~OutputFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

absl::Status OutputFile::WriteAt(int64_t offset, absl::Span<const std::byte> bytes) {
  if (offset < 0 || offset > bytes_ || static_cast<int64_t>(bytes.size()) > bytes_ - offset) {
    return absl::OutOfRangeError(absl::StrCat("cannot write bytes [", offset, ", ", offset + bytes.size(), ") of '",
                                              path_, "': it has ", bytes_, " bytes"));
  }
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return FileError("write to", path_, written < 0 ? errno : EIO);
    bytes.remove_prefix(written);
    offset += written;
  }
  return absl::OkStatus();
}

absl::Status OutputFile::Finish() {
  // Bytes never written (there are none in a complete checkpoint) must not change the length that readers check.
  if (ftruncate(fd_, bytes_) != 0) return FileError("set the length of", path_, errno);
  if (fsync(fd_) != 0) return FileError("flush", path_, errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return FileError("rename to", path_, errno);
  close(fd_);
  fd_ = -1;
  const std::string parent = std::filesystem::path(path_).parent_path().string();
  return SyncDirectory(parent.empty() ? "." : parent);
}

absl::Status WriteWholeFile(const std::string& path, std::string_view contents) {
  auto file = OutputFile::Create(path, static_cast<int64_t>(contents.size()));
  if (!file.ok()) return file.status();
  const auto* data = reinterpret_cast<const std::byte*>(contents.data());
  if (absl::Status status = (*file)->WriteAt(0, {data, contents.size()}); !status.ok()) return status;
  return (*file)->Finish();
}

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes, const std::string& within) {
  const auto opened = OpenRegularFile(path, within);
  if (!opened.ok()) return opened.status();
  const FileDescriptor fd(*opened);
  const absl::StatusOr<int64_t> size = RegularFileSize(fd.get(), path);
  if (!size.ok()) return size.status();
  if (*size > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot read '", path, "': it has ", *size, " bytes, at most ", max_bytes, " are expected"));
  }
  std::string contents(*size, '\0');
  size_t done = 0;
  while (done < contents.size()) {
    const ssize_t got = pread(fd.get(), contents.data() + done, contents.size() - done, done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FileError("read", path, errno);
    if (got == 0) return absl::DataLossError(absl::StrCat("cannot read '", path, "': it became shorter meanwhile"));
    done += got;
  }
  return contents;
}

absl::Status SyncDirectory(const std::string& path) {
  const FileDescriptor fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return FileError("open directory", path, errno);
  // Some network file systems cannot flush directories; their renames are as durable as they get.
  if (fsync(fd.get()) != 0 && errno != EINVAL && errno != ENOTSUP) return FileError("flush directory", path, errno);
  return absl::OkStatus();
}

}  // namespace wsync
