#include "client/checkpoint/checkpoint_writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <numeric>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/manifest.h"
#include "client/checkpoint/posix_file.h"
#include "server/core/printable.h"

namespace wsync {
namespace {

namespace fs = std::filesystem;

// Half of what readers accept, since HeaderBytesOf does not count what is escaped in a name.
constexpr int64_t kMaxShardHeaderBytes = kMaxSafetensorsHeaderBytes / 2;

// At most, of one tensor's entry but for escapes: punctuation and keys, two offsets, the dimensions.
int64_t HeaderBytesOf(const Tensor& tensor) {
  return static_cast<int64_t>(tensor.name.size()) + 110 + 20 * static_cast<int64_t>(tensor.shape.size());
}

// Absolute and without a trailing slash, so that "<out>.partial-<pid>" is a sibling whatever the user typed.
fs::path NormalPath(const std::string& path) {
  fs::path normal = fs::absolute(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

// Whether `path` is `directory`, or lies in it.
bool IsIn(const std::string& path, const fs::path& directory) {
  std::error_code error;
  const fs::path relative =
      fs::weakly_canonical(path, error).lexically_relative(fs::weakly_canonical(directory, error));
  return !path.empty() && !error && !relative.empty() && *relative.begin() != "..";
}

bool IsWeightFile(absl::string_view name) {
  for (const absl::string_view suffix : {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth",
                                         ".pt", ".gguf", ".h5", ".msgpack"}) {
    if (absl::EndsWith(name, suffix)) return true;
  }
  return false;
}

// Swaps two directories, at once where the file system can: then there is no moment without a checkpoint at `b`.
int Exchange(const std::string& a, const std::string& b) {
  if (renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  const std::string aside = a + ".old";
  if (rename(b.c_str(), aside.c_str()) != 0) return -1;
  if (rename(a.c_str(), b.c_str()) == 0) return rename(aside.c_str(), a.c_str());
  const int error = errno;
  rename(aside.c_str(), b.c_str());
  errno = error;
  return -1;
}

// std::filesystem::copy_file reports a full disk as an I/O error; this says what it is.
absl::Status CopyFile(const std::string& from, const std::string& within, const std::string& to) {
  const auto source = MappedFile::Open(from, within);
  if (!source.ok()) return source.status();
  const absl::Span<const std::byte> bytes = (*source)->bytes();
  auto target = OutputFile::Create(to, static_cast<int64_t>(bytes.size()));
  if (!target.ok()) return target.status();
  if (absl::Status status = (*target)->WriteAt(0, bytes); !status.ok()) return status;
  return (*target)->Finish();
}

}  // namespace

absl::Status CheckpointWriter::CheckTarget(const std::string& out_dir, const CheckpointOptions& options) {
  if (out_dir.empty()) return absl::InvalidArgumentError("cannot write a checkpoint: the output path is empty");
  const fs::path out = NormalPath(out_dir);
  std::error_code error;
  const fs::file_status status = fs::symlink_status(out, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  const auto refuse = [&](absl::string_view why) {
    return absl::AlreadyExistsError(absl::StrCat("cannot write a checkpoint to '", out.string(), "': ", why));
  };
  if (status.type() == fs::file_type::symlink) return refuse("it is a link; give the path that it stands for");
  if (status.type() != fs::file_type::directory) return refuse("it exists and is not a directory; choose another path");
  if (IsIn(options.copy_from, out) || IsIn(options.source, out)) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write a checkpoint to '", out.string(),
                                                   "': it is, or holds, what is read; choose another path"));
  }
  if (fs::is_empty(out, error)) return absl::OkStatus();
  if (error) return FileError("list", out.string(), error.value());
  if (!options.overwrite) return refuse("it is not empty; choose another path, or overwrite it (--overwrite)");
  const absl::Status ours = CheckOnlyOurs(out.string());
  if (ours.ok()) return ours;
  return refuse(absl::StrCat("only what wsync wrote is overwritten, and ", ours.message(),
                             "; move it away, or choose another path"));
}

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(const std::string& out_dir,
                                                                           const std::vector<Tensor>& tensors,
                                                                           const CheckpointOptions& options) {
  if (options.max_shard_bytes <= 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write a checkpoint with shards of ", options.max_shard_bytes,
                                                   " bytes: give a positive size"));
  }
  // Duplicates over all shards, which a single shard's writer could not see.
  if (const auto catalog = Catalog::Create(tensors); !catalog.ok()) return catalog.status();
  if (absl::Status status = CheckTarget(out_dir, options); !status.ok()) return status;
  const fs::path out = NormalPath(out_dir);
  std::error_code error;
  fs::create_directories(out.parent_path(), error);
  if (error) return FileError("create directory", out.parent_path().string(), error.value());
  const std::string partial = absl::StrCat(out.string(), ".partial-", getpid());
  if (mkdir(partial.c_str(), 0777) != 0) return FileError("create directory", partial, errno);
  std::unique_ptr<CheckpointWriter> writer(new CheckpointWriter(out.string(), partial, options));
  if (absl::Status status = writer->CreateShards(tensors); !status.ok()) return status;
  if (absl::Status status = writer->CopyOtherFiles(); !status.ok()) return status;
  return writer;
}

CheckpointWriter::~CheckpointWriter() {
  if (finished_) return;
  shards_.clear();
  std::error_code ignored;
  fs::remove_all(partial_dir_, ignored);
}

absl::Status CheckpointWriter::CreateShards(const std::vector<Tensor>& tensors) {
  std::vector<std::vector<Tensor>> shards;
  int64_t shard_bytes = 0, header_bytes = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t bytes = BytesOf(tensor), header = HeaderBytesOf(tensor);
    if (shards.empty() || (shard_bytes > 0 && shard_bytes + bytes > options_.max_shard_bytes) ||
        header_bytes + header > kMaxShardHeaderBytes) {
      shards.emplace_back();
      shard_bytes = header_bytes = 0;
    }
    header_bytes += header;
    places_.push_back({shards.size() - 1, static_cast<int64_t>(shards.back().size())});
    names_.push_back(tensor.name);
    shards.back().push_back(tensor);
    shard_bytes += bytes;
    total_bytes_ += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shard_names_.push_back(shards.size() == 1
                               ? std::string(kSingleFileName)
                               : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size()));
    auto shard = SafetensorsWriter::Create(absl::StrCat(partial_dir_, "/", shard_names_.back()), std::move(shards[i]));
    if (!shard.ok()) return shard.status();
    shards_.push_back(*std::move(shard));
  }
  return absl::OkStatus();
}

absl::Status CheckpointWriter::Write(int64_t tensor, absl::Span<const std::byte> bytes) {
  return WriteBytes(tensor, 0, bytes);
}

absl::Status CheckpointWriter::WriteRows(int64_t tensor, int64_t row_begin, absl::Span<const std::byte> bytes) {
  const Place& place = places_[tensor];
  return shards_[place.shard]->WriteRows(place.index, row_begin, bytes);
}

absl::Status CheckpointWriter::WriteBytes(int64_t tensor, int64_t byte_begin, absl::Span<const std::byte> bytes) {
  const Place& place = places_[tensor];
  return shards_[place.shard]->WriteBytes(place.index, byte_begin, bytes);
}

absl::Status CheckpointWriter::Finish() {
  for (const auto& shard : shards_) {
    if (absl::Status status = shard->Finish(); !status.ok()) return status;
  }
  if (absl::Status status = WriteIndex(); !status.ok()) return status;
  if (options_.config.has_value()) {
    const std::string text = DumpJson(*options_.config) + "\n";
    if (absl::Status status = WriteWholeFile(absl::StrCat(partial_dir_, "/", kConfigFileName), text); !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = WriteManifest(partial_dir_); !status.ok()) return status;
  if (absl::Status status = SyncDirectory(partial_dir_); !status.ok()) return status;
  return MoveIntoPlace();
}

absl::Status CheckpointWriter::WriteIndex() {
  if (shards_.size() == 1) return absl::OkStatus();
  std::vector<size_t> by_name(names_.size());
  std::iota(by_name.begin(), by_name.end(), 0);
  std::sort(by_name.begin(), by_name.end(), [this](size_t a, size_t b) { return names_[a] < names_[b]; });
  std::string index =
      absl::StrCat("{\n  \"metadata\": {\n    \"total_size\": ", total_bytes_, "\n  },\n  \"weight_map\": {");
  const char* separator = "\n";
  for (const size_t i : by_name) {
    absl::StrAppend(&index, separator, "    ", JsonText(names_[i]), ": ", JsonText(shard_names_[places_[i].shard]));
    separator = ",\n";
  }
  return WriteWholeFile(absl::StrCat(partial_dir_, "/", kIndexFileName), index + "\n  }\n}\n");
}

absl::Status CheckpointWriter::CopyOtherFiles() {
  if (options_.copy_from.empty()) return absl::OkStatus();
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(options_.copy_from, error)) {
    const std::string name = entry.path().filename().string();
    std::error_code ignored;
    if (entry.is_directory(ignored)) {
      notes_.push_back(absl::StrCat("did not copy the folder '", Printable(name, kMaxShownName), "'"));
      continue;
    }
    // A dangling link or a socket says nothing about the model. config.json: the one given in the options is it.
    if (!entry.is_regular_file(ignored) || IsWeightFile(name)) continue;
    if (name == kConfigFileName || name == kManifestFileName) continue;
    const std::string to = absl::StrCat(partial_dir_, "/", name);
    absl::Status status = CopyFile(entry.path().string(), options_.copy_from, to);
    if (!status.ok()) return status;
  }
  if (error) return FileError("list", options_.copy_from, error.value());
  return absl::OkStatus();
}

absl::Status CheckpointWriter::MoveIntoPlace() {
  // What was there when Create looked may have changed since.
  if (absl::Status status = CheckTarget(out_dir_, options_); !status.ok()) return status;
  std::error_code error;
  const bool replaces = fs::exists(out_dir_, error) && !fs::is_empty(out_dir_, error);
  const int result = replaces ? Exchange(partial_dir_, out_dir_) : rename(partial_dir_.c_str(), out_dir_.c_str());
  if (result != 0) return FileError(absl::StrCat("rename '", partial_dir_, "' to"), out_dir_, errno);
  finished_ = true;
  if (replaces) {  // now the old checkpoint
    if (const absl::Status removed = RemoveOurs(partial_dir_); !removed.ok()) {
      notes_.push_back(absl::StrCat("did not remove all of the old checkpoint: ", removed.message()));
    }
  }
  return SyncDirectory(fs::path(out_dir_).parent_path().string());
}

}  // namespace wsync
