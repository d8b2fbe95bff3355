// The header of a safetensors file, as text in and data out: everything about the format that needs no file.
//
//     u64 little endian: header length n | n bytes of JSON, space-padded | the buffer
//     {"__metadata__": {"format": "pt"}, "<name>": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
//
// Offsets count from the start of the buffer. The tensors fill it without holes or overlaps. Format and limits are
// those of the safetensors reference implementation. Pure functions.
#ifndef WSYNC_CLIENT_CHECKPOINT_SAFETENSORS_HEADER_H_
#define WSYNC_CLIENT_CHECKPOINT_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/core/catalog.h"

namespace wsync {

inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the reference implementation's limit
inline constexpr int64_t kSafetensorsLengthBytes = 8;

// Where one tensor lies in the buffer: [begin, end).
struct HeaderEntry {
  Tensor tensor;
  int64_t begin = 0;
  int64_t end = 0;
};

// `json` is the header without its length; `buffer_bytes` what the file holds after it. Entries come in buffer order.
// INVALID_ARGUMENT naming `file` and the tensor for every way a header can be wrong: not JSON, duplicate names, unknown
// dtype, bad shape, sizes that disagree or overflow, ranges outside the buffer, overlaps, holes, trailing bytes.
absl::StatusOr<std::vector<HeaderEntry>> ParseSafetensorsHeader(std::string_view json, int64_t buffer_bytes,
                                                                const std::string& file);

struct BuiltHeader {
  std::string bytes;             // length field, JSON and padding: the file up to its buffer, a multiple of 8
  std::vector<int64_t> offsets;  // of each tensor in the buffer, in the order of `tensors`
  int64_t buffer_bytes = 0;
};
// Lays the tensors out by descending element size, then name, as the reference implementation does.
// REQUIRES: names are unique. RESOURCE_EXHAUSTED if the header is larger than readers accept.
absl::StatusOr<BuiltHeader> BuildSafetensorsHeader(const std::vector<Tensor>& tensors);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_SAFETENSORS_HEADER_H_
