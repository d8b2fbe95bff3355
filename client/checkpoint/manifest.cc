#include "client/checkpoint/manifest.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <map>
#include <system_error>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/checkpoint/posix_file.h"
#include "client/checkpoint/strict_json.h"
#include "server/core/hash.h"
#include "server/core/printable.h"

namespace wsync {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxManifestBytes = 64 << 20;  // some hundred thousand shards
// What is read of a large file: 4 MiB of any shard, so that looking at a model of 1000 of them takes seconds.
constexpr int64_t kSampleBytes = 64 << 10;
constexpr int64_t kSamples = 64;

struct Fingerprint {
  int64_t bytes = 0;
  std::string digest;
  bool operator==(const Fingerprint&) const = default;
};
using Files = std::map<std::string, Fingerprint>;

// Bytes [begin, end) that are digested of a file of that size.
std::vector<std::pair<int64_t, int64_t>> SamplesOf(int64_t bytes) {
  if (bytes <= kSampleBytes * kSamples) return {{0, bytes}};
  std::vector<std::pair<int64_t, int64_t>> samples;
  for (int64_t i = 0; i < kSamples; ++i) {
    const auto begin = static_cast<int64_t>(static_cast<double>(bytes - kSampleBytes) * i / (kSamples - 1));
    samples.emplace_back(begin, begin + kSampleBytes);
  }
  return samples;
}

absl::StatusOr<Fingerprint> FingerprintOf(const std::string& path) {
  const auto file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  const absl::Span<const std::byte> bytes = (*file)->bytes();
  Hasher hasher;
  for (const auto& [begin, end] : SamplesOf(static_cast<int64_t>(bytes.size()))) {
    hasher.AddBytes(bytes.data() + begin, static_cast<size_t>(end - begin));
  }
  return Fingerprint{static_cast<int64_t>(bytes.size()), hasher.Finish().Hex()};
}

absl::Status Foreign(const std::string& directory, const std::string& why) {
  return absl::FailedPreconditionError(absl::StrCat("'", directory, "' ", why));
}

absl::StatusOr<Files> ReadManifest(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kManifestFileName);
  std::error_code error;
  if (fs::symlink_status(path, error).type() != fs::file_type::regular) {
    return Foreign(directory, absl::StrCat("has no ", kManifestFileName, ", so wsync did not write it"));
  }
  const auto text = ReadWholeFile(path, kMaxManifestBytes);
  if (!text.ok()) return text.status();
  const auto manifest = ParseOrderedJson(*text, absl::StrCat("'", path, "'"));
  if (!manifest.ok()) return manifest.status();
  const auto files = manifest->is_object() ? manifest->find("files") : manifest->end();
  if (!manifest->is_object() || files == manifest->end() || !files->is_object()) {
    return Foreign(directory, absl::StrCat("has a ", kManifestFileName, " that is not wsync's"));
  }
  Files result;
  for (const auto& [name, file] : files->items()) {
    const bool valid = file.is_object() && file.contains("bytes") && file["bytes"].is_number_unsigned() &&
                       file.contains("digest") && file["digest"].is_string();
    if (valid) result[name] = {file["bytes"].get<int64_t>(), file["digest"].get<std::string>()};
  }
  return result;
}

// OK where the entry of the directory is a file that the manifest lists, and as it was written.
absl::Status CheckOurs(const std::string& directory, const fs::directory_entry& entry, const Files& files) {
  const std::string name = entry.path().filename().string(), shown = Printable(name, kMaxShownName);
  const auto listed = files.find(name);
  std::error_code error;
  if (listed == files.end() || entry.symlink_status(error).type() != fs::file_type::regular) {
    return Foreign(directory, absl::StrCat("holds '", shown, "', which wsync did not write"));
  }
  const auto found = FingerprintOf(entry.path().string());
  if (!found.ok()) return found.status();
  if (*found == listed->second) return absl::OkStatus();
  return Foreign(directory, absl::StrCat("holds '", shown, "', which was changed since wsync wrote it"));
}

// The directory's entries by name, so that the same one is named every time; without the manifest.
absl::StatusOr<std::vector<fs::directory_entry>> EntriesOf(const std::string& directory) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    if (at->path().filename() != kManifestFileName) entries.push_back(*at);
  }
  if (error) return FileError("list", directory, error.value());
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace

absl::Status WriteManifest(const std::string& directory) {
  const auto entries = EntriesOf(directory);
  if (!entries.ok()) return entries.status();
  OrderedJson files = OrderedJson::object();
  for (const fs::directory_entry& entry : *entries) {
    const auto fingerprint = FingerprintOf(entry.path().string());
    if (!fingerprint.ok()) return fingerprint.status();
    files.get_ref<OrderedJson::object_t&>().emplace_back(
        entry.path().filename().string(),
        OrderedJson{{"bytes", static_cast<uint64_t>(fingerprint->bytes)}, {"digest", fingerprint->digest}});
  }
  const OrderedJson manifest = {{"purpose", "by this list, wsync --overwrite tells what it wrote from what is yours"},
                                {"files", std::move(files)}};
  return WriteWholeFile(absl::StrCat(directory, "/", kManifestFileName), DumpJson(manifest) + "\n");
}

absl::Status CheckOnlyOurs(const std::string& directory) {
  const auto files = ReadManifest(directory);
  if (!files.ok()) return files.status();
  const auto entries = EntriesOf(directory);
  if (!entries.ok()) return entries.status();
  for (const fs::directory_entry& entry : *entries) {
    if (absl::Status status = CheckOurs(directory, entry, *files); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RemoveOurs(const std::string& directory) {
  const auto files = ReadManifest(directory);
  if (!files.ok()) return files.status();
  const auto entries = EntriesOf(directory);
  if (!entries.ok()) return entries.status();
  absl::Status kept;
  for (const fs::directory_entry& entry : *entries) {
    absl::Status status = CheckOurs(directory, entry, *files);
    if (status.ok() && unlink(entry.path().c_str()) != 0) status = FileError("remove", entry.path().string(), errno);
    kept.Update(status);
  }
  if (!kept.ok()) return kept;
  unlink(absl::StrCat(directory, "/", kManifestFileName).c_str());
  return rmdir(directory.c_str()) == 0 ? absl::OkStatus() : FileError("remove directory", directory, errno);
}

}  // namespace wsync
