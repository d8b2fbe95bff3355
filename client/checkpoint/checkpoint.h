// A model on disk, as the ecosystem lays it out: one safetensors file, or shards with an index, and a config.json.
//
// Everything is checked when it is opened; tensors are views into mappings that live as long as the Checkpoint.
// Immutable; safe to share between threads.
#ifndef WSYNC_CLIENT_CHECKPOINT_CHECKPOINT_H_
#define WSYNC_CLIENT_CHECKPOINT_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "client/checkpoint/safetensors.h"
#include "client/checkpoint/strict_json.h"

namespace wsync {

inline constexpr char kSingleFileName[] = "model.safetensors";
inline constexpr char kIndexFileName[] = "model.safetensors.index.json";
inline constexpr char kConfigFileName[] = "config.json";

class Checkpoint {
 public:
  // `path` is a directory with model.safetensors (preferred, as transformers does, unless the index names it) or
  // model.safetensors.index.json, or one .safetensors file, which then is all there is: files beside it are not looked
  // at. The index decides: of what its shards hold, a tensor that it places elsewhere or does not name is left out, and
  // notes() tells. Its `metadata` says nothing that is needed, and is not held against it.
  // NOT_FOUND: nothing to open there, a shard that the index names is missing. INVALID_ARGUMENT: a malformed file, a
  // tensor that is not in the shard where the index places it, a file that a link leads out of the directory
  // (OpenRegularFile), a shard name that does, a config.json that is not a JSON object.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& directory() const { return directory_; }  // "" for a single file
  // In natural order of names (natural_order.h), so that layers come in order however the files are cut.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  const TensorView* Find(std::string_view name) const;  // or null
  std::vector<Tensor> TensorList() const;               // what a trainer would register
  int64_t total_bytes() const { return total_bytes_; }
  // OK: what was read of the tensors so far was there. FAILED_PRECONDITION: a file was cut short meanwhile.
  absl::Status Intact() const;
  const std::vector<std::string>& notes() const { return notes_; }  // what was left out, for the user to read

  const std::optional<OrderedJson>& config() const { return config_; }  // config.json, if there is one

 private:
  Checkpoint() = default;
  absl::Status OpenDirectory();
  absl::Status OpenSingleFile(const std::string& file_path);
  absl::Status OpenShards(bool has_single);
  absl::Status ReadConfig();
  absl::StatusOr<SafetensorsFile*> AddFile(const std::string& file_path);

  std::string path_;
  std::string directory_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<TensorView> tensors_;
  absl::flat_hash_map<std::string_view, size_t> index_;  // views into tensors_
  int64_t total_bytes_ = 0;
  std::optional<OrderedJson> config_;
  std::vector<std::string> notes_;
};

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_CHECKPOINT_H_
