#include "client/checkpoint/safetensors_header.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <system_error>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/checkpoint/json_reader.h"
#include "client/checkpoint/strict_json.h"
#include "server/core/printable.h"

namespace wsync {
namespace {

constexpr char kMetadataKey[] = "__metadata__";
constexpr int64_t kHeaderAlign = 8;  // so that the buffer, and with it every tensor, is aligned in the file

std::string SupportedDtypes() {
  std::string names;
  for (int number = 1; DtypeBytes(static_cast<Dtype>(number)) > 0; ++number) {
    absl::StrAppend(&names, number > 1 ? ", " : "", std::string(DtypeName(static_cast<Dtype>(number))));
  }
  return names;
}

// Collects the subject of every message: which file, which tensor.
struct Subject {
  const std::string& file;
  const std::string& name;
  template <typename... Parts>
  absl::Status Error(const Parts&... parts) const {
    return absl::InvalidArgumentError(
        absl::StrCat("'", file, "': tensor '", Printable(name, kMaxShownName), "' ", parts...));
  }
};

// What one entry says before it is checked as a whole.
struct Fields {
  std::optional<std::string> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::vector<int64_t> offsets;
};

// A whole number from 0 to 2^63 - 1.
bool ReadCount(JsonReader& reader, int64_t* count, absl::Status* status) {
  if (reader.Peek() != JsonReader::Kind::kNumber) {
    *status = reader.Skip();
    return false;
  }
  const auto text = reader.ReadNumber();
  *status = text.status();
  if (!text.ok()) return false;
  const auto parsed = std::from_chars(text->data(), text->data() + text->size(), *count);
  return parsed.ec == std::errc() && parsed.ptr == text->data() + text->size() && text->front() != '-';
}

// `valid` becomes false where it is no list of counts; what is read on is checked nevertheless.
absl::Status ReadCounts(JsonReader& reader, std::vector<int64_t>* counts, bool* valid) {
  if (reader.Peek() != JsonReader::Kind::kArray) {
    *valid = false;
    return reader.Skip();
  }
  return reader.ReadArray([&] {
    absl::Status status;
    int64_t count = 0;
    *valid = ReadCount(reader, &count, &status) && *valid;
    counts->push_back(count);
    return status;
  });
}

absl::Status ReadShape(JsonReader& reader, const Subject& subject, Fields* fields) {
  if (reader.Peek() != JsonReader::Kind::kArray) return subject.Error("has no \"shape\" list");
  const size_t begin = reader.position();
  bool valid = true;
  absl::Status status = ReadCounts(reader, &fields->shape.emplace(), &valid);
  if (!status.ok() || valid) return status;
  return subject.Error("has the shape ", Printable(reader.TextSince(begin), kMaxShownName),
                       ": dimensions must be whole numbers from 0 to 2^63 - 1");
}

absl::Status ReadField(JsonReader& reader, const std::string& key, const Subject& subject, Fields* fields) {
  if (key == "shape") return ReadShape(reader, subject, fields);
  if (key == "dtype") {
    if (reader.Peek() != JsonReader::Kind::kString) return subject.Error("has no \"dtype\" text");
    auto text = reader.ReadString();
    if (text.ok()) fields->dtype = *std::move(text);
    return text.status();
  }
  if (key != "data_offsets") return reader.Skip();
  bool valid = true;
  absl::Status status = ReadCounts(reader, &fields->offsets, &valid);
  if (!valid) fields->offsets.clear();
  return status;
}

// What can be done about a dtype that is not moved.
std::string AdviceFor(std::string_view dtype) {
  if (dtype == "F4" || dtype.starts_with("F6_")) {
    return absl::StrCat(
        "; its elements are smaller than a byte: store them packed as U8, as MXFP4 and NVFP4 checkpoints "
        "do, or convert the tensor to BF16");
  }
  return absl::StrCat("; supported are ", SupportedDtypes(), "; convert the tensor or leave it out of the checkpoint");
}

absl::StatusOr<Dtype> DtypeOf(const Fields& fields, const Subject& subject) {
  if (!fields.dtype.has_value()) return subject.Error("has no \"dtype\" text");
  if (const std::optional<Dtype> dtype = ParseDtype(*fields.dtype)) return *dtype;
  return subject.Error("has the unsupported dtype '", Printable(*fields.dtype, kMaxShownName), "'",
                       AdviceFor(*fields.dtype));
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

absl::Status TakeOffsets(const Fields& fields, int64_t buffer_bytes, const Subject& subject, HeaderEntry* entry) {
  if (fields.offsets.size() != 2 || fields.offsets[0] > fields.offsets[1]) {
    return subject.Error("has no valid \"data_offsets\": expected [begin, end] with 0 <= begin <= end");
  }
  entry->begin = fields.offsets[0];
  entry->end = fields.offsets[1];
  if (entry->end > buffer_bytes) {
    return subject.Error("lies outside the file: it ends at byte ", entry->end, " of a buffer of ", buffer_bytes,
                         " bytes; the file is cut short or its header is wrong: copy or download it again");
  }
  return absl::OkStatus();
}

absl::Status ReadEntry(JsonReader& reader, std::string name, int64_t buffer_bytes, const std::string& file,
                       HeaderEntry* entry) {
  entry->tensor.name = std::move(name);
  const Subject subject{file, entry->tensor.name};
  if (reader.Peek() == JsonReader::Kind::kNothing) return reader.Skip();  // says what is wrong with it, and where
  if (reader.Peek() != JsonReader::Kind::kObject) {
    return subject.Error("is described by ", reader.PeekName(), ", expected an object");
  }
  Fields fields;
  absl::Status status = reader.ReadObject([&](std::string&& key) { return ReadField(reader, key, subject, &fields); });
  if (!status.ok()) return status;
  const auto dtype = DtypeOf(fields, subject);
  if (!dtype.ok()) return dtype.status();
  if (!fields.shape.has_value()) return subject.Error("has no \"shape\" list");
  entry->tensor.dtype = *dtype;
  entry->tensor.shape = *std::move(fields.shape);
  const auto needed = NeededBytes(entry->tensor, subject);
  if (!needed.ok()) return needed.status();
  if (status = TakeOffsets(fields, buffer_bytes, subject, entry); !status.ok()) return status;
  if (entry->end - entry->begin == *needed) return absl::OkStatus();
  return subject.Error("has ", entry->end - entry->begin, " bytes of data, but ", std::string(DtypeName(*dtype)), " [",
                       absl::StrJoin(entry->tensor.shape, ", "), "] needs ", *needed);
}

// REQUIRES: entries sorted by begin, then end.
absl::Status CheckContiguous(const std::vector<HeaderEntry>& entries, int64_t buffer_bytes, const std::string& file) {
  int64_t position = 0;
  const std::string* previous = nullptr;
  for (const HeaderEntry& entry : entries) {
    const Subject subject{file, entry.tensor.name};
    if (entry.begin < position) return subject.Error("overlaps tensor '", Printable(*previous, kMaxShownName), "'");
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

absl::Status ReadMetadata(JsonReader& reader, const std::string& file) {
  const auto not_text = [&file] {
    return absl::InvalidArgumentError(absl::StrCat("'", file, "': \"__metadata__\" must map text to text"));
  };
  if (reader.Peek() != JsonReader::Kind::kObject) return not_text();
  return reader.ReadObject(
      [&](std::string&&) { return reader.Peek() == JsonReader::Kind::kString ? reader.Skip() : not_text(); });
}

}  // namespace

absl::StatusOr<std::vector<HeaderEntry>> ParseSafetensorsHeader(std::string_view json, int64_t buffer_bytes,
                                                                const std::string& file) {
  if (json.empty() || json.front() != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat("'", file, "' is not a safetensors file: its header does not start with '{'"));
  }
  JsonReader reader(json, absl::StrCat("'", file, "': the safetensors header"));
  std::vector<HeaderEntry> entries;
  absl::Status status = reader.ReadObject([&](std::string&& name) {
    if (name == kMetadataKey) return ReadMetadata(reader, file);
    return ReadEntry(reader, std::move(name), buffer_bytes, file, &entries.emplace_back());
  });
  if (status.ok()) status = reader.End();
  if (!status.ok()) return status;
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  if (status = CheckContiguous(entries, buffer_bytes, file); !status.ok()) return status;
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
    absl::StrAppend(&json, ",", JsonText(tensors[i].name), ":{\"dtype\":\"", std::string(DtypeName(tensors[i].dtype)),
                    "\",\"shape\":[", absl::StrJoin(tensors[i].shape, ","), "],\"data_offsets\":[", begin, ",", end,
                    "]}");
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
