#include "client/checkpoint/safetensors.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

uint64_t ReadLength(absl::Span<const std::byte> bytes) {
  uint64_t length = 0;
  for (int64_t i = 0; i < kSafetensorsLengthBytes; ++i) length |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  return length;
}

// The header's JSON, or why the file cannot have one.
absl::StatusOr<std::string_view> HeaderText(absl::Span<const std::byte> bytes, const std::string& path) {
  const auto file_bytes = static_cast<int64_t>(bytes.size());
  if (file_bytes < kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' is truncated: ", file_bytes,
                     " bytes are too few for a safetensors file; copy or download it again"));
  }
  const uint64_t header_bytes = ReadLength(bytes);
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' claims a header of ", header_bytes, " bytes, at most ",
                                                   kMaxSafetensorsHeaderBytes,
                                                   " are allowed: not a safetensors file?"));
  }
  if (header_bytes > bytes.size() - kSafetensorsLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is truncated: its header has ", header_bytes,
                                                   " bytes, the file only ", file_bytes,
                                                   "; copy or download it again"));
  }
  return std::string_view(reinterpret_cast<const char*>(bytes.data()) + kSafetensorsLengthBytes, header_bytes);
}

// Catalog's rules (unique names, sizes, dimensions) are those of a file's tensors; only an empty list differs.
absl::Status CheckTensors(const std::vector<Tensor>& tensors, const std::string& path) {
  if (tensors.empty()) return absl::OkStatus();
  const absl::Status status = Catalog::Create(tensors).status();
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("cannot write '", path, "': ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path,
                                                                       const std::string& within) {
  auto mapped = MappedFile::Open(path, within);
  if (!mapped.ok()) return mapped.status();
  const absl::Span<const std::byte> bytes = (*mapped)->bytes();
  const auto header = HeaderText(bytes, path);
  if (!header.ok()) return header.status();
  const int64_t buffer_begin = kSafetensorsLengthBytes + static_cast<int64_t>(header->size());
  auto entries = ParseSafetensorsHeader(*header, static_cast<int64_t>(bytes.size()) - buffer_begin, path);
  if (!entries.ok()) return entries.status();
  if (absl::Status status = (*mapped)->Intact(); !status.ok()) return status;
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, *std::move(mapped)));
  file->tensors_.reserve(entries->size());
  for (HeaderEntry& entry : *entries) {
    file->tensors_.push_back(
        {std::move(entry.tensor), bytes.data() + buffer_begin + entry.begin, entry.end - entry.begin});
  }
  return file;
}

SafetensorsWriter::SafetensorsWriter(std::string path, std::vector<Tensor> tensors, std::vector<int64_t> offsets,
                                     std::unique_ptr<OutputFile> file)
    : path_(std::move(path)),
      tensors_(std::move(tensors)),
      offsets_(std::move(offsets)),
      written_(tensors_.size()),
      file_(std::move(file)) {}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path,
                                                                             std::vector<Tensor> tensors) {
  if (absl::Status status = CheckTensors(tensors, path); !status.ok()) return status;
  auto header = BuildSafetensorsHeader(tensors);
  if (!header.ok()) {
    return absl::Status(header.status().code(), absl::StrCat("cannot write '", path, "': ", header.status().message()));
  }
  const auto header_bytes = static_cast<int64_t>(header->bytes.size());
  auto file = OutputFile::Create(path, header_bytes + header->buffer_bytes);
  if (!file.ok()) return file.status();
  const auto* text = reinterpret_cast<const std::byte*>(header->bytes.data());
  if (absl::Status status = (*file)->WriteAt(0, {text, header->bytes.size()}); !status.ok()) return status;
  for (int64_t& offset : header->offsets) offset += header_bytes;
  return std::unique_ptr<SafetensorsWriter>(
      new SafetensorsWriter(path, std::move(tensors), std::move(header->offsets), *std::move(file)));
}

absl::Status SafetensorsWriter::Write(int64_t tensor, absl::Span<const std::byte> bytes) {
  return WriteBytes(tensor, 0, bytes);
}

absl::Status SafetensorsWriter::WriteRows(int64_t tensor, int64_t row_begin, absl::Span<const std::byte> bytes) {
  const MatrixView view = ViewOf(tensors_[tensor]);
  const int64_t row_bytes = view.cols * DtypeBytes(tensors_[tensor].dtype);
  if (row_begin < 0 || row_begin > view.rows || (row_bytes > 0 && bytes.size() % row_bytes != 0)) {
    return absl::OutOfRangeError(absl::StrCat("cannot write ", bytes.size(), " bytes at row ", row_begin,
                                              " of tensor '", tensors_[tensor].name, "': it has ", view.rows,
                                              " rows of ", row_bytes, " bytes"));
  }
  return WriteBytes(tensor, row_begin * row_bytes, bytes);
}

absl::Status SafetensorsWriter::WriteBytes(int64_t tensor, int64_t byte_begin, absl::Span<const std::byte> bytes) {
  const int64_t tensor_bytes = BytesOf(tensors_[tensor]);
  const auto size = static_cast<int64_t>(bytes.size());
  if (byte_begin < 0 || byte_begin > tensor_bytes || size > tensor_bytes - byte_begin) {
    return absl::OutOfRangeError(absl::StrCat("cannot write ", size, " bytes at byte ", byte_begin, " of tensor '",
                                              tensors_[tensor].name, "': it has ", tensor_bytes, " bytes"));
  }
  if (absl::Status status = file_->WriteAt(offsets_[tensor] + byte_begin, bytes); !status.ok()) return status;
  written_[tensor].fetch_add(size, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const int64_t written = written_[i].load(std::memory_order_relaxed), expected = BytesOf(tensors_[i]);
    if (written == expected) continue;
    return absl::FailedPreconditionError(absl::StrCat("cannot finish '", path_, "': tensor '", tensors_[i].name,
                                                      "' got ", written, " of its ", expected, " bytes"));
  }
  return file_->Finish();
}

}  // namespace wsync
