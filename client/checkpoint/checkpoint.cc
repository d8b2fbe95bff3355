#include "client/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/checkpoint/json_reader.h"
#include "client/checkpoint/natural_order.h"
#include "server/core/printable.h"
#include "server/core/text.h"

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

// Where the index places each tensor. `found`: it is there.
struct Place {
  uint32_t shard = 0;
  bool found = false;
};
struct WeightMap {
  std::vector<std::string> shards;
  absl::flat_hash_map<std::string, Place> places;
};

absl::Status ReadPlaces(JsonReader& reader, const std::string& path, WeightMap* weight_map) {
  absl::flat_hash_map<std::string, uint32_t> numbers;
  return reader.ReadObject([&](std::string&& tensor) {
    const bool is_text = reader.Peek() == JsonReader::Kind::kString;
    const size_t begin = reader.position();
    absl::StatusOr<std::string> shard = std::string();
    absl::Status status;
    is_text ? status = (shard = reader.ReadString()).status() : status = reader.Skip();
    if (!status.ok()) return status;
    if (!IsPlainFileName(*shard)) {
      return absl::InvalidArgumentError(absl::StrCat("index '", path, "' places tensor '",
                                                     Printable(tensor, kMaxShownName), "' in ",
                                                     Printable(reader.TextSince(begin), kMaxShownName),
                                                     ": expected the name of a .safetensors file beside the index"));
    }
    const auto [number, is_new] = numbers.emplace(*shard, static_cast<uint32_t>(weight_map->shards.size()));
    if (is_new) weight_map->shards.push_back(*std::move(shard));
    weight_map->places.emplace(std::move(tensor), Place{number->second});
    return absl::OkStatus();
  });
}

absl::StatusOr<WeightMap> ReadWeightMap(const std::string& path, const std::string& within) {
  const auto text = ReadWholeFile(path, kMaxJsonBytes, within);
  if (!text.ok()) return text.status();
  JsonReader reader(*text, absl::StrCat("index '", path, "'"));
  const absl::Status no_map =
      absl::InvalidArgumentError(absl::StrCat("index '", path, "' has no \"weight_map\" object"));
  if (reader.Peek() == JsonReader::Kind::kArray) return no_map;
  std::optional<WeightMap> weight_map;
  absl::Status status = reader.ReadObject([&](std::string&& key) {
    if (key != "weight_map") return reader.Skip();
    if (reader.Peek() != JsonReader::Kind::kObject) return no_map;
    return ReadPlaces(reader, path, &weight_map.emplace());
  });
  if (status.ok()) status = reader.End();
  if (!status.ok()) return status;
  if (!weight_map.has_value()) return no_map;
  if (weight_map->places.empty())
    return absl::InvalidArgumentError(absl::StrCat("index '", path, "' names no tensors"));
  return *std::move(weight_map);
}

// Counts what the index leaves out of its shards, and names the first.
struct LeftOut {
  int64_t tensors = 0;
  std::string example;

  void Add(const std::string& tensor, const std::string& shard) {
    if (tensors++ == 0) example = absl::StrCat("'", Printable(tensor, kMaxShownName), "' in '", shard, "'");
  }
  void NoteIn(std::vector<std::string>* notes, const char* why) const {
    if (tensors == 0) return;
    notes->push_back(absl::StrCat("left out of the shards ", Counted(tensors, "tensor"), " ", why, ": ", example,
                                  tensors > 1 ? " and others" : ""));
  }
};

// The tensors that the index places in this shard.
std::vector<TensorView> Chosen(std::vector<TensorView> held, uint32_t shard, WeightMap* map, LeftOut* elsewhere,
                               LeftOut* unnamed) {
  std::vector<TensorView> chosen;
  chosen.reserve(held.size());
  for (TensorView& view : held) {
    const auto place = map->places.find(view.tensor.name);
    if (place == map->places.end()) {
      unnamed->Add(view.tensor.name, map->shards[shard]);
    } else if (place->second.shard != shard) {
      elsewhere->Add(view.tensor.name, map->shards[shard]);
    } else {
      place->second.found = true;
      chosen.push_back(std::move(view));
    }
  }
  return chosen;
}

// Of all that are missing, the first by name: the same one every time.
absl::Status CheckAllFound(const WeightMap& map, const std::string& index_path) {
  const std::pair<const std::string, Place>* missing = nullptr;
  for (const auto& entry : map.places) {
    if (!entry.second.found && (missing == nullptr || NaturalLess(entry.first, missing->first))) missing = &entry;
  }
  if (missing == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("index '", index_path, "' places tensor '", Printable(missing->first, kMaxShownName), "' in '",
                   map.shards[missing->second.shard], "', but that file does not hold it", kMixedUp));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->path_ = path;
  std::error_code error;
  const bool is_directory = fs::is_directory(path, error);
  if (is_directory) checkpoint->directory_ = path;
  absl::Status status = is_directory ? checkpoint->OpenDirectory() : checkpoint->OpenSingleFile(path);
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
  const bool has_single = Exists(directory / kSingleFileName), has_index = Exists(directory / kIndexFileName);
  if (!has_single && !has_index) return NothingToOpen(directory_);
  absl::Status status = has_index ? OpenShards(has_single) : OpenSingleFile((directory / kSingleFileName).string());
  return status.ok() ? ReadConfig() : status;
}

absl::Status Checkpoint::OpenSingleFile(const std::string& file_path) {
  const auto file = AddFile(file_path);
  if (!file.ok()) return file.status();
  tensors_ = (*file)->TakeTensors();
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenShards(bool has_single) {
  const std::string index_path = (fs::path(directory_) / kIndexFileName).string();
  auto map = ReadWeightMap(index_path, directory_);
  if (has_single &&
      (!map.ok() || std::find(map->shards.begin(), map->shards.end(), kSingleFileName) == map->shards.end())) {
    notes_.push_back(absl::StrCat("'", directory_, "' has ", kSingleFileName, " and ", kIndexFileName,
                                  ", which does not name it: the former is read, as transformers does, while vLLM "
                                  "reads the index's shards; remove the one that is out of date"));
    return OpenSingleFile((fs::path(directory_) / kSingleFileName).string());
  }
  if (!map.ok()) return map.status();
  LeftOut elsewhere, unnamed;
  for (uint32_t shard = 0; shard < map->shards.size(); ++shard) {
    if (!Exists(fs::path(directory_) / map->shards[shard])) {
      return absl::NotFoundError(absl::StrCat("cannot open checkpoint '", directory_, "': the index names shard '",
                                              map->shards[shard], "', which is not there; download or copy it again"));
    }
    const auto file = AddFile((fs::path(directory_) / map->shards[shard]).string());
    if (!file.ok()) return file.status();
    for (TensorView& view : Chosen((*file)->TakeTensors(), shard, &*map, &elsewhere, &unnamed)) {
      tensors_.push_back(std::move(view));
    }
  }
  elsewhere.NoteIn(&notes_, "which the index places in another shard");
  unnamed.NoteIn(&notes_, "which the index does not name");
  return CheckAllFound(*map, index_path);
}

absl::Status Checkpoint::ReadConfig() {
  const std::string path = (fs::path(directory_) / kConfigFileName).string();
  if (!Exists(path)) return absl::OkStatus();
  const auto text = ReadWholeFile(path, kMaxJsonBytes, directory_);
  if (!text.ok()) return text.status();
  auto config = ParseOrderedJson(*text, absl::StrCat("'", path, "'"));
  if (!config.ok()) return config.status();
  if (!config->is_object()) return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a JSON object"));
  config_ = *std::move(config);
  return absl::OkStatus();
}

absl::StatusOr<SafetensorsFile*> Checkpoint::AddFile(const std::string& file_path) {
  auto file = SafetensorsFile::Open(file_path, directory_);
  if (!file.ok()) return file.status();
  files_.push_back(*std::move(file));
  return files_.back().get();
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

}  // namespace wsync
