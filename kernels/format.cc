#include "kernels/format.h"

#include <array>
#include <utility>

namespace wsync {
namespace {

template <class T, size_t N>
using NameTable = std::array<std::pair<T, std::string_view>, N>;

constexpr NameTable<Dtype, 19> kDtypes = {{
    {Dtype::kBool, "BOOL"},
    {Dtype::kU8, "U8"},
    {Dtype::kI8, "I8"},
    {Dtype::kF8E5M2, "F8_E5M2"},
    {Dtype::kF8E4M3, "F8_E4M3"},
    {Dtype::kI16, "I16"},
    {Dtype::kU16, "U16"},
    {Dtype::kF16, "F16"},
    {Dtype::kBF16, "BF16"},
    {Dtype::kI32, "I32"},
    {Dtype::kU32, "U32"},
    {Dtype::kF32, "F32"},
    {Dtype::kF64, "F64"},
    {Dtype::kI64, "I64"},
    {Dtype::kU64, "U64"},
    {Dtype::kF8E8M0, "F8_E8M0"},
    {Dtype::kF8E4M3Fnuz, "F8_E4M3FNUZ"},
    {Dtype::kF8E5M2Fnuz, "F8_E5M2FNUZ"},
    {Dtype::kC64, "C64"},
}};
constexpr NameTable<Granularity, 3> kGranularities = {{
    {Granularity::kBlock, "block"},
    {Granularity::kChannel, "channel"},
    {Granularity::kTensor, "tensor"},
}};
constexpr NameTable<ScaleFormat, 2> kScaleFormats = {{
    {ScaleFormat::kFp32, "fp32"},
    {ScaleFormat::kPow2, "pow2"},
}};
constexpr NameTable<Preset, 4> kPresets = {{
    {Preset::kDefault, "default"},
    {Preset::kDeepGemm, "deepgemm"},
    {Preset::kNemo, "nemo"},
    {Preset::kVerl, "verl"},
}};

template <class T, size_t N>
std::string_view NameOf(const NameTable<T, N>& table, T value) {
  for (const auto& [entry, name] : table) {
    if (entry == value) return name;
  }
  return "unknown";
}

template <class T, size_t N>
std::optional<T> ValueOf(const NameTable<T, N>& table, std::string_view name) {
  for (const auto& [value, entry] : table) {
    if (entry == name) return value;
  }
  return std::nullopt;
}

}  // namespace

std::string_view DtypeName(Dtype dtype) { return NameOf(kDtypes, dtype); }
std::optional<Dtype> ParseDtype(std::string_view name) { return ValueOf(kDtypes, name); }

std::string_view GranularityName(Granularity g) { return NameOf(kGranularities, g); }
std::string_view ScaleFormatName(ScaleFormat f) { return NameOf(kScaleFormats, f); }
std::string_view PresetName(Preset p) { return NameOf(kPresets, p); }
std::optional<Granularity> ParseGranularity(std::string_view name) { return ValueOf(kGranularities, name); }
std::optional<ScaleFormat> ParseScaleFormat(std::string_view name) { return ValueOf(kScaleFormats, name); }
std::optional<Preset> ParsePreset(std::string_view name) { return ValueOf(kPresets, name); }

}  // namespace wsync
