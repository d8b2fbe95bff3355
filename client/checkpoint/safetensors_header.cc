#include "client/checkpoint/safetensors_header.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/checkpoint/strict_json.h"

namespace wsync {
namespace {

constexpr char kMetadataKey[] = "__metadata__";
constexpr int64_t kHeaderAlign = 8;  // so that the buffer, and with it every tensor, is aligned in the file

constexpr Dtype kDtypes[] = {Dtype::kBool, Dtype::kU8,  Dtype::kI8,  Dtype::kF8E5M2, Dtype::kF8E4M3,
                             Dtype::kI16,  Dtype::kU16, Dtype::kF16, Dtype::kBF16,   Dtype::kI32,
                             Dtype::kU32,  Dtype::kF32, Dtype::kF64, Dtype::kI64,    Dtype::kU64};

std::string SupportedDtypes() {
  return absl::StrJoin(kDtypes, ", ", [](std::string* out, Dtype dtype) { out->append(DtypeName(dtype)); });
}

// Collects the subject of every message: which file, which tensor.
struct Subject {
  const std::string& file;
  const std::string& name;
  template <typename... Parts>
  absl::Status Error(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat("'", file, "': tensor '", name, "' ", parts...));
  }
};

// A non-negative integer that fits in int64_t.
bool ReadCount(const Json& value, int64_t* out) {
  if (!value.is_number_unsigned()) return false;
  const auto count = value.get<uint64_t>();
  if (count > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
  *out = static_cast<int64_t>(count);
  return true;
}

absl::StatusOr<Dtype> ReadDtype(const Json& entry, const Subject& subject) {
  const auto field = entry.find("dtype");
  if (field == entry.end() || !field->is_string()) return subject.Error("has no \"dtype\" text");
  const auto& text = field->get_ref<const std::string&>();
  const std::optional<Dtype> dtype = ParseDtype(text);
  if (dtype.has_value()) return *dtype;
  return subject.Error("has the unsupported dtype '", text, "'; supported are ", SupportedDtypes(),
                       "; convert the tensor or leave it out of the checkpoint");
}

absl::StatusOr<std::vector<int64_t>> ReadShape(const Json& entry, const Subject& subject) {
  const auto field = entry.find("shape");
  if (field == entry.end() || !field->is_array()) return subject.Error("has no \"shape\" list");
  std::vector<int64_t> shape;
  for (const Json& dimension : *field) {
    int64_t size = 0;
    if (!ReadCount(dimension, &size)) {
      return subject.Error("has the shape ", field->dump(), ": dimensions must be whole numbers from 0 to 2^63 - 1");
    }
    shape.push_back(size);
  }
  return shape;
}

// Bytes that shape and dtype need, or an error where that does not fit.
absl::StatusOr<int64_t> NeededBytes(const Tensor& tensor, const Subject& subject) {
  int64_t bytes = DtypeBytes(tensor.dtype);
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes) || bytes > kMaxTensorBytes) {
      return subject.Error("is too large: the shape [", absl::StrJoin(tensor.shape, ", "), "] needs more than ",
                           kMaxTensorBytes, " bytes");
    }
  }
  return bytes;
}

absl::Status ReadOffsets(const Json& json, int64_t buffer_bytes, const Subject& subject, HeaderEntry* entry) {
  const auto field = json.find("data_offsets");
  if (field == json.end() || !field->is_array() || field->size() != 2 || !ReadCount((*field)[0], &entry->begin) ||
      !ReadCount((*field)[1], &entry->end) || entry->begin > entry->end) {
    return subject.Error("has no valid \"data_offsets\": expected [begin, end] with 0 <= begin <= end");
  }
  if (entry->end > buffer_bytes) {
    return subject.Error("lies outside the file: it ends at byte ", entry->end, " of a buffer of ", buffer_bytes,
                         " bytes; the file is cut short or its header is wrong: copy or download it again");
  }
  return absl::OkStatus();
}

absl::StatusOr<HeaderEntry> ReadEntry(const std::string& name, const Json& json, int64_t buffer_bytes,
                                      const std::string& file) {
  const Subject subject{file, name};
  if (!json.is_object()) return subject.Error("is described by ", json.type_name(), ", expected an object");
  HeaderEntry entry;
  entry.tensor.name = name;
  auto dtype = ReadDtype(json, subject);
  if (!dtype.ok()) return dtype.status();
  entry.tensor.dtype = *dtype;
  auto shape = ReadShape(json, subject);
  if (!shape.ok()) return shape.status();
  entry.tensor.shape = *std::move(shape);
  const auto needed = NeededBytes(entry.tensor, subject);
  if (!needed.ok()) return needed.status();
  if (absl::Status status = ReadOffsets(json, buffer_bytes, subject, &entry); !status.ok()) return status;
  if (entry.end - entry.begin != *needed) {
    return subject.Error("has ", entry.end - entry.begin, " bytes of data, but ", std::string(DtypeName(*dtype)), " [",
                         absl::StrJoin(entry.tensor.shape, ", "), "] needs ", *needed);
  }
  return entry;
}

// REQUIRES: entries sorted by begin, then end.
absl::Status CheckContiguous(const std::vector<HeaderEntry>& entries, int64_t buffer_bytes, const std::string& file) {
  int64_t position = 0;
  const std::string* previous = nullptr;
  for (const HeaderEntry& entry : entries) {
    const Subject subject{file, entry.tensor.name};
    if (entry.begin < position) return subject.Error("overlaps tensor '", *previous, "'");
    if (entry.begin > position) {
      return subject.Error("begins at byte ", entry.begin, ", but the data before it ends at ", position,
                           ": safetensors files have no holes");
    }
    position = entry.end;
    previous = &entry.tensor.name;
  }
  if (position == buffer_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("'", file, "' has ", buffer_bytes,
                                                 " bytes of data, but its tensors end at ", position,
                                                 "; the file is damaged: copy or download it again"));
}

absl::Status CheckMetadata(const Json& metadata, const std::string& file) {
  const bool valid = metadata.is_object() &&
                     std::all_of(metadata.begin(), metadata.end(), [](const Json& value) { return value.is_string(); });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("'", file, "': \"__metadata__\" must map text to text"));
}

}  // namespace

absl::StatusOr<std::vector<HeaderEntry>> ParseSafetensorsHeader(std::string_view json, int64_t buffer_bytes,
                                                                const std::string& file) {
  if (json.empty() || json.front() != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat("'", file, "' is not a safetensors file: its header does not start with '{'"));
  }
  const auto header = ParseJson(json, absl::StrCat("'", file, "': the safetensors header"));
  if (!header.ok()) return header.status();
  std::vector<HeaderEntry> entries;
  entries.reserve(header->size());
  for (const auto& [name, value] : header->items()) {
    if (name == kMetadataKey) {
      if (absl::Status status = CheckMetadata(value, file); !status.ok()) return status;
      continue;
    }
    auto entry = ReadEntry(name, value, buffer_bytes, file);
    if (!entry.ok()) return entry.status();
    entries.push_back(*std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  if (absl::Status status = CheckContiguous(entries, buffer_bytes, file); !status.ok()) return status;
  return entries;
}

absl::StatusOr<BuiltHeader> BuildSafetensorsHeader(const std::vector<Tensor>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int64_t bytes_a = DtypeBytes(tensors[a].dtype), bytes_b = DtypeBytes(tensors[b].dtype);
    return bytes_a != bytes_b ? bytes_a > bytes_b : tensors[a].name < tensors[b].name;
  });
  BuiltHeader built;
  built.offsets.resize(tensors.size());
  std::string json = "{\"__metadata__\":{\"format\":\"pt\"}";  // "pt": transformers refuses files without it
  for (const size_t i : order) {
    const int64_t begin = built.buffer_bytes, end = begin + BytesOf(tensors[i]);
    absl::StrAppend(&json, ",", Json(tensors[i].name).dump(), ":{\"dtype\":\"",
                    std::string(DtypeName(tensors[i].dtype)), "\",\"shape\":[", absl::StrJoin(tensors[i].shape, ","),
                    "],\"data_offsets\":[", begin, ",", end, "]}");
    built.offsets[i] = begin;
    built.buffer_bytes = end;
  }
  json += '}';
  json.resize(RoundUp(json.size(), kHeaderAlign), ' ');
  if (static_cast<int64_t>(json.size()) > kMaxSafetensorsHeaderBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("a safetensors header of ", json.size(), " bytes for ",
                                                     tensors.size(), " tensors: readers accept at most ",
                                                     kMaxSafetensorsHeaderBytes, "; use smaller shards"));
  }
  for (int64_t i = 0; i < kSafetensorsLengthBytes; ++i) {
    built.bytes += static_cast<char>(static_cast<uint64_t>(json.size()) >> (8 * i));
  }
  built.bytes += json;
  return built;
}

}  // namespace wsync
