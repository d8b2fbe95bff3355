#include "client/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/checkpoint/natural_order.h"

namespace wsync {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxJsonBytes = 256 << 20;  // an index of a million tensors has about 120 MB
constexpr char kMixedUp[] = "; the shards and the index are not of the same checkpoint: copy or download it again";
constexpr absl::string_view kSuffix = ".safetensors";

bool Exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// What a user most likely has where no safetensors checkpoint is.
absl::Status NothingToOpen(const std::string& directory) {
  std::string advice = "; give the directory of a Hugging Face checkpoint";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    const std::string name = entry.path().filename().string();
    if (absl::EndsWith(name, kSuffix)) advice = absl::StrCat("; to open '", name, "' alone, give its path");
    if (absl::EndsWith(name, ".bin") || absl::EndsWith(name, ".pth")) {
      advice = absl::StrCat("; '", name, "' is a pickle: convert the checkpoint to safetensors first");
    }
  }
  return absl::NotFoundError(absl::StrCat("cannot open checkpoint '", directory, "': it has neither ", kSingleFileName,
                                          " nor ", kIndexFileName, advice));
}

// A shard is a file in the checkpoint's own directory: an index must not make us read elsewhere.
bool IsPlainFileName(const std::string& name) {
  return name.size() > kSuffix.size() && absl::EndsWith(name, kSuffix) && !absl::StrContains(name, '/') &&
         !absl::StrContains(name, '\0');
}

using WeightMap = std::map<std::string, std::string, std::less<>>;  // tensor -> shard

absl::StatusOr<WeightMap> ReadWeightMap(const std::string& path) {
  const auto text = ReadWholeFile(path, kMaxJsonBytes);
  if (!text.ok()) return text.status();
  const auto index = ParseJson(*text, absl::StrCat("index '", path, "'"));
  if (!index.ok()) return index.status();
  if (!index->is_object() || !index->contains("weight_map") || !(*index)["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("index '", path, "' has no \"weight_map\" object"));
  }
  WeightMap weight_map;
  for (const auto& [tensor, shard] : (*index)["weight_map"].items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(absl::StrCat("index '", path, "' places tensor '", tensor, "' in ",
                                                     shard.dump(),
                                                     ": expected the name of a .safetensors file beside the index"));
    }
    weight_map[tensor] = shard.get<std::string>();
  }
  if (weight_map.empty()) return absl::InvalidArgumentError(absl::StrCat("index '", path, "' names no tensors"));
  return weight_map;
}

// Holds one shard against the index, and adds its tensors to `found`.
absl::Status CheckShard(const SafetensorsFile& file, const std::string& shard, const WeightMap& weight_map,
                        WeightMap* found) {
  for (const TensorView& view : file.tensors()) {
    const std::string& name = view.tensor.name;
    const auto [other, is_new] = found->emplace(name, shard);
    if (!is_new) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", file.path(), "' holds tensor '", name, "', which shard '", other->second, "' holds too"));
    }
    const auto indexed = weight_map.find(name);
    if (indexed != weight_map.end() && indexed->second == shard) continue;
    const std::string says =
        indexed == weight_map.end() ? "does not name" : absl::StrCat("places in '", indexed->second, "'");
    return absl::InvalidArgumentError(
        absl::StrCat("'", file.path(), "' holds tensor '", name, "', which the index ", says, kMixedUp));
  }
  return absl::OkStatus();
}

void AppendNames(const OrderedJson& quantization, const char* key, std::vector<std::string>* names) {
  const auto list = quantization.find(key);
  if (list == quantization.end() || !list->is_array()) return;
  for (const OrderedJson& name : *list) {
    if (name.is_string() && !absl::StartsWith(name.get_ref<const std::string&>(), "re:")) {
      names->push_back(name.get<std::string>());
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->path_ = path;
  std::error_code error;
  const bool is_directory = fs::is_directory(path, error);
  if (is_directory) checkpoint->directory_ = path;
  absl::Status status = is_directory ? checkpoint->OpenDirectory() : checkpoint->AddFile(path);
  if (!status.ok()) return status;
  auto& tensors = checkpoint->tensors_;
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorView& a, const TensorView& b) { return NaturalLess(a.tensor.name, b.tensor.name); });
  checkpoint->index_.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    checkpoint->index_.emplace(tensors[i].tensor.name, i);
    checkpoint->total_bytes_ += tensors[i].bytes;
  }
  return checkpoint;
}

absl::Status Checkpoint::OpenDirectory() {
  const fs::path directory(directory_);
  absl::Status status;
  if (Exists(directory / kSingleFileName)) {
    status = AddFile((directory / kSingleFileName).string());
  } else if (Exists(directory / kIndexFileName)) {
    status = OpenShards();
  } else {
    status = NothingToOpen(directory_);
  }
  return status.ok() ? ReadConfig() : status;
}

absl::Status Checkpoint::OpenShards() {
  const std::string index_path = (fs::path(directory_) / kIndexFileName).string();
  const auto weight_map = ReadWeightMap(index_path);
  if (!weight_map.ok()) return weight_map.status();
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *weight_map) shards.insert(shard);
  WeightMap found;
  for (const std::string& shard : shards) {
    if (!Exists(fs::path(directory_) / shard)) {
      return absl::NotFoundError(absl::StrCat("cannot open checkpoint '", directory_, "': the index names shard '",
                                              shard, "', which is not there; download it or copy it again"));
    }
    if (absl::Status status = AddFile((fs::path(directory_) / shard).string()); !status.ok()) return status;
    if (absl::Status status = CheckShard(*files_.back(), shard, *weight_map, &found); !status.ok()) return status;
  }
  for (const auto& [tensor, shard] : *weight_map) {
    if (found.contains(tensor)) continue;
    return absl::InvalidArgumentError(absl::StrCat("index '", index_path, "' places tensor '", tensor, "' in '", shard,
                                                   "', but that file does not hold it", kMixedUp));
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::ReadConfig() {
  const std::string path = (fs::path(directory_) / kConfigFileName).string();
  if (!Exists(path)) return absl::OkStatus();
  const auto text = ReadWholeFile(path, kMaxJsonBytes);
  if (!text.ok()) return text.status();
  auto config = ParseOrderedJson(*text, absl::StrCat("'", path, "'"));
  if (!config.ok()) return config.status();
  if (!config->is_object()) return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a JSON object"));
  config_ = *std::move(config);
  return absl::OkStatus();
}

absl::Status Checkpoint::AddFile(const std::string& file_path) {
  auto file = SafetensorsFile::Open(file_path);
  if (!file.ok()) return file.status();
  tensors_.insert(tensors_.end(), (*file)->tensors().begin(), (*file)->tensors().end());
  files_.push_back(*std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::Intact() const {
  absl::Status status;
  for (const auto& file : files_) status.Update(file->Intact());
  return status;
}

const TensorView* Checkpoint::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::vector<Tensor> Checkpoint::TensorList() const {
  std::vector<Tensor> list;
  list.reserve(tensors_.size());
  for (const TensorView& view : tensors_) list.push_back(view.tensor);
  return list;
}

std::vector<std::string> Checkpoint::ModulesToNotConvert() const {
  std::vector<std::string> names;
  if (!config_.has_value() || !config_->contains("quantization_config")) return names;
  const OrderedJson& quantization = (*config_)["quantization_config"];
  if (!quantization.is_object()) return names;
  for (const char* key : {"modules_to_not_convert", "ignored_layers", "ignore"}) AppendNames(quantization, key, &names);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

}  // namespace wsync
