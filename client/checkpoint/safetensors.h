// One safetensors file: read through a mapping, or written piece by piece. The format is in safetensors_header.h.
//
// Nothing of a file is used before its whole header was checked. A written file appears under its name only when every
// byte of every tensor was written and flushed; a failure or an early end leaves nothing behind.
#ifndef WSYNC_CLIENT_CHECKPOINT_SAFETENSORS_H_
#define WSYNC_CLIENT_CHECKPOINT_SAFETENSORS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/checkpoint/posix_file.h"
#include "client/checkpoint/safetensors_header.h"
#include "server/core/catalog.h"

namespace wsync {

// A tensor in mapped memory: valid as long as the file it came from. `data` is aligned for its dtype in files written
// by wsync or by current safetensors libraries, but older writers did not pad: check before casting.
struct TensorView {
  Tensor tensor;
  const std::byte* data = nullptr;
  int64_t bytes = 0;
};

// Immutable; safe to share between threads.
class SafetensorsFile {
 public:
  // INVALID_ARGUMENT naming the file (and the tensor) if it is truncated or malformed in any way; NOT_FOUND and the
  // like if it cannot be opened. `within`: see OpenRegularFile.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path, const std::string& within = "");

  const std::string& path() const { return path_; }
  const std::vector<TensorView>& tensors() const { return tensors_; }  // in file order
  absl::Status Intact() const { return file_->Intact(); }
  std::vector<TensorView> TakeTensors() { return std::move(tensors_); }

 private:
  SafetensorsFile(std::string path, std::unique_ptr<MappedFile> file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::vector<TensorView> tensors_;
};

// Tensor indices are those of the list given to Create. The Write functions may be called from several threads, each
// byte once; Finish from one, after them.
class SafetensorsWriter {
 public:
  // INVALID_ARGUMENT for duplicate names, sizes that overflow and the like (see Catalog); an empty list is a valid
  // file. RESOURCE_EXHAUSTED if the disk has no room for the whole file.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(const std::string& path,
                                                                   std::vector<Tensor> tensors);

  absl::Status Write(int64_t tensor, absl::Span<const std::byte> bytes);  // the whole tensor
  // Whole rows of the tensor's MatrixView, from row `row_begin` on.
  absl::Status WriteRows(int64_t tensor, int64_t row_begin, absl::Span<const std::byte> bytes);
  absl::Status WriteBytes(int64_t tensor, int64_t byte_begin, absl::Span<const std::byte> bytes);

  // FAILED_PRECONDITION naming the first tensor that is not complete; then the file under `path` is as it was before.
  absl::Status Finish();

 private:
  SafetensorsWriter(std::string path, std::vector<Tensor> tensors, std::vector<int64_t> offsets,
                    std::unique_ptr<OutputFile> file);
  const std::string path_;
  const std::vector<Tensor> tensors_;
  const std::vector<int64_t> offsets_;  // of each tensor in the file
  std::vector<std::atomic<int64_t>> written_;
  std::unique_ptr<OutputFile> file_;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_SAFETENSORS_H_
