#include "server/rpc/convert.h"

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace wsync {
namespace {

constexpr size_t kMaxRuleBytes = 1024;              // of one glob or module name: twice the longest tensor name
constexpr size_t kMaxRulesBytes = size_t{2} << 20;  // of all of them, which go in one message: half of gRPC's cap
constexpr int kMaxRules = 100'000;          // per list; the longest lists seen in checkpoints hold some thousand
constexpr size_t kMaxShmNameBytes = 255;    // NAME_MAX, which shm_open enforces too
constexpr size_t kCudaIpcHandleBytes = 64;  // sizeof(cudaIpcMemHandle_t)
constexpr size_t kMaxDeviceUuidBytes = 64;  // "GPU-" and a UUID take 40
constexpr uint64_t kMaxInt64 = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
constexpr uint32_t kMaxInt32 = static_cast<uint32_t>(std::numeric_limits<int32_t>::max());

absl::StatusOr<Dtype> DtypeFromProto(int number, absl::string_view tensor) {
  if (number == v1::DTYPE_UNSPECIFIED || !v1::Dtype_IsValid(number)) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor), ": unknown dtype number ", number,
                                                   "; peers of different versions may disagree on dtypes"));
  }
  return static_cast<Dtype>(number);
}

// The wire's enums have the numbers of ours, and 0 for 'not given'.
template <typename Enum>
absl::StatusOr<Enum> RuleFromProto(int number, bool valid, absl::string_view field) {
  if (number == 0 || !valid) {
    return absl::InvalidArgumentError(absl::StrCat("recipe rules: unknown ", field, " number ", number));
  }
  return static_cast<Enum>(number);
}

using TextList = google::protobuf::RepeatedPtrField<std::string>;

std::vector<std::string> ToVector(const TextList& list) { return {list.begin(), list.end()}; }

absl::Status CheckList(const TextList& list, absl::string_view field) {
  if (list.size() > kMaxRules) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe rules: ", list.size(), " entries in ", field, ", at most ", kMaxRules, " are taken"));
  }
  for (const std::string& entry : list) {
    if (entry.size() <= kMaxRuleBytes) continue;
    return absl::InvalidArgumentError(absl::StrCat("recipe rules: ", field, " entry ", Quoted(entry), " has ",
                                                   entry.size(), " bytes, at most ", kMaxRuleBytes, " are taken"));
  }
  return absl::OkStatus();
}

template <typename Value>
absl::StatusOr<Value> ParseRule(std::optional<Value> parsed, absl::string_view key, absl::string_view text,
                                absl::string_view expected) {
  if (parsed.has_value()) return *parsed;
  return absl::InvalidArgumentError(
      absl::StrCat("recipe.", key, ": ", Quoted(text), " is unknown; expected one of: ", expected));
}

// Sets the three lists and checks the whole.
template <typename Proto>
absl::StatusOr<RecipeRules> FinishRules(RecipeRules rules, const Proto& proto) {
  if (auto s = CheckList(proto.include(), "include"); !s.ok()) return s;
  if (auto s = CheckList(proto.exclude(), "exclude"); !s.ok()) return s;
  if (auto s = CheckList(proto.modules_to_not_convert(), "modules_to_not_convert"); !s.ok()) return s;
  if (auto s = CheckList(proto.allow_infinities(), "allow_infinities"); !s.ok()) return s;
  rules.fp8 = proto.fp8();
  rules.include = ToVector(proto.include());
  rules.exclude = ToVector(proto.exclude());
  rules.modules_to_not_convert = ToVector(proto.modules_to_not_convert());
  rules.allow_infinities = ToVector(proto.allow_infinities());
  rules.first_layers_bf16 = proto.first_layers_bf16();
  rules.last_layers_bf16 = proto.last_layers_bf16();
  if (auto s = ValidateRules(rules); !s.ok()) return s;
  return rules;
}

absl::StatusOr<int64_t> HandleBytes(uint64_t bytes, absl::string_view what) {
  if (bytes == 0 || bytes > kMaxInt64) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": a size of ", bytes, " bytes is impossible"));
  }
  return static_cast<int64_t>(bytes);
}

absl::StatusOr<MemoryHandle> SharedMemoryFromProto(const v1::SharedMemory& memory) {
  const std::string& name = memory.name();
  const std::string what = absl::StrCat("shared memory ", Quoted(name));
  const bool one_component =
      name.size() >= 2 && name[0] == '/' && name.find_first_of(std::string("/\0", 2), 1) == std::string::npos;
  if (!IsProcessFile(name) && (!one_component || name.size() > kMaxShmNameBytes)) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": not a name for shm_open: expected one '/' and then 1 to ",
                                                   kMaxShmNameBytes - 1, " bytes without '/', or /proc/<pid>/fd/<n>"));
  }
  auto bytes = HandleBytes(memory.size_bytes(), what);
  if (!bytes.ok()) return bytes.status();
  return SharedMemoryHandle{name, *bytes};
}

absl::StatusOr<MemoryHandle> CudaIpcFromProto(const v1::CudaIpc& memory) {
  if (memory.handle().size() != kCudaIpcHandleBytes) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA IPC handle of ", memory.handle().size(), " bytes; expected ",
                                                   kCudaIpcHandleBytes, " from cudaIpcGetMemHandle"));
  }
  if (memory.device_uuid().size() > kMaxDeviceUuidBytes) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA IPC handle: device UUID ", Quoted(memory.device_uuid()),
                                                   " is longer than ", kMaxDeviceUuidBytes, " bytes"));
  }
  auto bytes = HandleBytes(memory.size_bytes(), "CUDA IPC handle");
  if (!bytes.ok()) return bytes.status();
  return CudaIpcHandle{memory.handle(), memory.device_uuid(), *bytes};
}

absl::Status CheckDestination(const v1::Destination& destination) {
  const std::string name = Quoted(destination.output().name());
  if (destination.row_begin() < 0 || destination.row_end() < destination.row_begin() || destination.col_begin() < 0 ||
      destination.col_end() < destination.col_begin()) {
    return absl::InvalidArgumentError(absl::StrCat("destination for ", name, ": rows [", destination.row_begin(), ", ",
                                                   destination.row_end(), ") and columns [", destination.col_begin(),
                                                   ", ", destination.col_end(), ") are no range"));
  }
  if (destination.handle() > kMaxInt32 || destination.offset_bytes() > kMaxInt64 ||
      destination.row_pitch_bytes() > kMaxInt64) {
    return absl::InvalidArgumentError(absl::StrCat("destination for ", name, ": handle ", destination.handle(),
                                                   ", offset ", destination.offset_bytes(), " and row pitch ",
                                                   destination.row_pitch_bytes(), " are not all possible"));
  }
  return absl::OkStatus();
}

}  // namespace

v1::Hash ToProto(const Hash128& hash) {
  v1::Hash proto;
  proto.set_high(hash.high);
  proto.set_low(hash.low);
  return proto;
}

Hash128 FromProto(const v1::Hash& hash) { return Hash128{.high = hash.high(), .low = hash.low()}; }

v1::Tensor ToProto(const Tensor& tensor) {
  v1::Tensor proto;
  proto.set_name(tensor.name);
  proto.set_dtype(static_cast<v1::Dtype>(tensor.dtype));
  proto.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  return proto;
}

absl::StatusOr<Tensor> FromProto(const v1::Tensor& tensor) {
  if (tensor.name().size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor.name()), ": its name has ",
                                                   tensor.name().size(), " bytes, at most ", kMaxNameBytes,
                                                   " are taken"));
  }
  if (static_cast<size_t>(tensor.shape_size()) > kMaxDims) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor.name()), ": ", tensor.shape_size(),
                                                   " dimensions, at most ", kMaxDims, " are taken"));
  }
  for (const int64_t dim : tensor.shape()) {
    if (dim >= 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(tensor.name()), ": dimension ", dim, " is negative"));
  }
  auto dtype = DtypeFromProto(tensor.dtype(), tensor.name());
  if (!dtype.ok()) return dtype.status();
  return Tensor{.name = tensor.name(), .dtype = *dtype, .shape = {tensor.shape().begin(), tensor.shape().end()}};
}

v1::RecipeRules ToProto(const RecipeRules& rules) {
  v1::RecipeRules proto;
  proto.set_fp8(rules.fp8);
  proto.set_granularity(static_cast<v1::Granularity>(rules.granularity));
  proto.set_scale_format(static_cast<v1::ScaleFormat>(rules.scale_format));
  proto.set_preset(static_cast<v1::Preset>(rules.preset));
  proto.mutable_include()->Add(rules.include.begin(), rules.include.end());
  proto.mutable_exclude()->Add(rules.exclude.begin(), rules.exclude.end());
  proto.set_first_layers_bf16(rules.first_layers_bf16);
  proto.set_last_layers_bf16(rules.last_layers_bf16);
  proto.mutable_modules_to_not_convert()->Add(rules.modules_to_not_convert.begin(), rules.modules_to_not_convert.end());
  proto.mutable_allow_infinities()->Add(rules.allow_infinities.begin(), rules.allow_infinities.end());
  return proto;
}

absl::StatusOr<RecipeRules> FromProto(const v1::RecipeRules& rules) {
  auto granularity =
      RuleFromProto<Granularity>(rules.granularity(), v1::Granularity_IsValid(rules.granularity()), "granularity");
  if (!granularity.ok()) return granularity.status();
  auto scale_format =
      RuleFromProto<ScaleFormat>(rules.scale_format(), v1::ScaleFormat_IsValid(rules.scale_format()), "scale format");
  if (!scale_format.ok()) return scale_format.status();
  auto preset = RuleFromProto<Preset>(rules.preset(), v1::Preset_IsValid(rules.preset()), "preset");
  if (!preset.ok()) return preset.status();
  RecipeRules result;
  result.granularity = *granularity;
  result.scale_format = *scale_format;
  result.preset = *preset;
  return FinishRules(std::move(result), rules);
}

absl::Status CheckModulesToNotConvert(const google::protobuf::RepeatedPtrField<std::string>& modules) {
  return CheckList(modules, "modules_to_not_convert");
}

absl::Status CheckSendable(const RecipeRules& rules) {
  const v1::RecipeRules proto = ToProto(rules);
  if (proto.ByteSizeLong() > kMaxRulesBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe rules: the lists take ", proto.ByteSizeLong(), " bytes, at most ", kMaxRulesBytes,
                     " can be sent to sinks; replace names in modules_to_not_convert by globs in recipe.exclude"));
  }
  return FromProto(proto).status();
}

absl::StatusOr<RecipeRules> FromConfig(const v1::RecipeConfig& config) {
  auto granularity =
      ParseRule(ParseGranularity(config.granularity()), "granularity", config.granularity(), "block, channel, tensor");
  if (!granularity.ok()) return granularity.status();
  auto scale_format = ParseRule(ParseScaleFormat(config.scale()), "scale", config.scale(), "fp32, pow2");
  if (!scale_format.ok()) return scale_format.status();
  auto preset = ParseRule(ParsePreset(config.preset()), "preset", config.preset(), "default, deepgemm, nemo, verl");
  if (!preset.ok()) return preset.status();
  RecipeRules result;
  result.granularity = *granularity;
  result.scale_format = *scale_format;
  result.preset = *preset;
  return FinishRules(std::move(result), config);
}

v1::MemoryHandle ToProto(const MemoryHandle& handle) {
  v1::MemoryHandle proto;
  if (const auto* shared = std::get_if<SharedMemoryHandle>(&handle)) {
    proto.mutable_shared_memory()->set_name(shared->name);
    proto.mutable_shared_memory()->set_size_bytes(static_cast<uint64_t>(shared->bytes));
  } else if (const auto* cuda = std::get_if<CudaIpcHandle>(&handle)) {
    proto.mutable_cuda_ipc()->set_handle(cuda->handle);
    proto.mutable_cuda_ipc()->set_device_uuid(cuda->device_uuid);
    proto.mutable_cuda_ipc()->set_size_bytes(static_cast<uint64_t>(cuda->bytes));
  }
  return proto;
}

absl::StatusOr<MemoryHandle> FromProto(const v1::MemoryHandle& handle) {
  switch (handle.kind_case()) {
    case v1::MemoryHandle::kSharedMemory:
      return SharedMemoryFromProto(handle.shared_memory());
    case v1::MemoryHandle::kCudaIpc:
      return CudaIpcFromProto(handle.cuda_ipc());
    case v1::MemoryHandle::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("memory handle: neither shared memory nor CUDA IPC is given");
}

EventHandle FromProto(const v1::StreamEvent& event) { return {event.handle(), event.device_uuid()}; }

v1::Destination ToProto(const Destination& destination) {
  v1::Destination proto;
  *proto.mutable_output() =
      ToProto(Tensor{.name = destination.output, .dtype = destination.dtype, .shape = destination.shape});
  proto.set_row_begin(destination.row_begin);
  proto.set_row_end(destination.row_end);
  proto.set_col_begin(destination.col_begin);
  proto.set_col_end(destination.col_end);
  proto.set_handle(static_cast<uint32_t>(destination.handle));
  proto.set_offset_bytes(static_cast<uint64_t>(destination.offset_bytes));
  proto.set_row_pitch_bytes(static_cast<uint64_t>(destination.row_pitch_bytes));
  return proto;
}

absl::StatusOr<Destination> FromProto(const v1::Destination& destination) {
  auto output = FromProto(destination.output());
  if (!output.ok()) return output.status();
  if (auto s = CheckDestination(destination); !s.ok()) return s;
  Destination result;
  result.output = std::move(output->name);
  result.dtype = output->dtype;
  result.shape = std::move(output->shape);
  result.row_begin = destination.row_begin();
  result.row_end = destination.row_end();
  result.col_begin = destination.col_begin();
  result.col_end = destination.col_end();
  result.handle = static_cast<int32_t>(destination.handle());
  result.offset_bytes = static_cast<int64_t>(destination.offset_bytes());
  result.row_pitch_bytes = static_cast<int64_t>(destination.row_pitch_bytes());
  return result;
}

}  // namespace wsync
