// Files as the checkpoint code needs them: read-only mappings, and outputs that exist under their final name only when
// they are complete and on disk.
//
// Errors say what was tried, on which path, why it failed, and what to do where that is known. Each object belongs to
// one owner; OutputFile::WriteAt may be called from several threads at once for ranges that do not overlap.
#ifndef WSYNC_CLIENT_CHECKPOINT_POSIX_FILE_H_
#define WSYNC_CLIENT_CHECKPOINT_POSIX_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/core/guarded_range.h"

namespace wsync {

// `tried` reads as in "cannot <tried> '<path>': <errno's text>"; a full disk, a size limit and the like add advice.
absl::Status FileError(const std::string& tried, const std::string& path, int error);

// Opens a regular file for reading; anything else (a directory, a FIFO, a device) is refused without being opened, so
// that nothing waits for it. With `within`, a directory, the file must lie there once all links are followed, or, where
// that directory is a snapshot in a cache of a model hub, among the cache's blobs: what one downloaded must not make us
// read, and copy, elsewhere. The caller owns the descriptor.
absl::StatusOr<int> OpenRegularFile(const std::string& path, const std::string& within);

// A whole regular file, mapped read-only. The mapping dies with the object. What another process cuts off meanwhile
// reads as zeros (core/guarded_range.h), so whoever made something of the bytes asks Intact before it is kept.
class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path, const std::string& within = "");
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  absl::Span<const std::byte> bytes() const { return {data_, size_}; }
  // OK: the file is still as long as it was. FAILED_PRECONDITION: it was cut short, and bytes may be zeros.
  absl::Status Intact() const;

 private:
  MappedFile(std::string path, int fd, size_t size) : path_(std::move(path)), fd_(fd), size_(size) {}
  const std::string path_;
  const int fd_;
  const size_t size_;
  const std::byte* data_ = nullptr;  // null: there are no bytes
  std::unique_ptr<GuardedRange> guard_;
};

// Tells the kernel that mapped pages fully inside the range will not be needed soon, so that reading a model once does
// not grow the process by the model's size. The contents stay valid.
void ReleaseMappedPages(const std::byte* data, int64_t bytes);

// A file of known size, written at any offsets under a temporary name beside `path` and renamed to `path` by Finish.
class OutputFile {
 public:
  // Reserves the space, so that a disk that is too small fails here and not an hour later.
  static absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path, int64_t bytes);
  ~OutputFile();  // without a successful Finish: removes the temporary file
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  absl::Status WriteAt(int64_t offset, absl::Span<const std::byte> bytes);
  absl::Status Finish();  // flushes to disk, renames, flushes the directory; once

 private:
  OutputFile(std::string path, std::string temporary, int fd, int64_t bytes)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd), bytes_(bytes) {}
  const std::string path_;
  const std::string temporary_;
  int fd_;  // -1 once finished
  const int64_t bytes_;
};

// The same in one call, for small files.
absl::Status WriteWholeFile(const std::string& path, std::string_view contents);
// RESOURCE_EXHAUSTED above `max_bytes`: nothing is allocated from a length that was not checked.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes, const std::string& within = "");
absl::Status SyncDirectory(const std::string& path);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_POSIX_FILE_H_
