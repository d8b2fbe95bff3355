#include "server/rpc/config_units.h"

#include <array>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace wsync {
namespace {

struct Unit {
  const char* suffix;
  int64_t factor;
};
// Largest first, so that printing takes the largest that divides. The suffix of a bare number comes last.
constexpr std::array<Unit, 5> kSizeUnits = {{{"TiB", int64_t{1} << 40},
                                             {"GiB", int64_t{1} << 30},
                                             {"MiB", int64_t{1} << 20},
                                             {"KiB", int64_t{1} << 10},
                                             {"", 1}}};
constexpr std::array<Unit, 4> kDurationUnits = {{{"min", 60'000}, {"s", 1000}, {"ms", 1}, {"", 1}}};

constexpr ParsedNumber kMalformed = {.fault = UnitFault::kMalformed};
constexpr ParsedNumber kTooLarge = {.fault = UnitFault::kTooLarge};

// Splits "256 MiB" into number and suffix.
template <size_t kUnits>
ParsedNumber Parse(const std::string& text, const std::array<Unit, kUnits>& units) {
  const absl::string_view all = absl::StripAsciiWhitespace(text);
  size_t end = !all.empty() && all[0] == '-' ? 1 : 0;
  const size_t digits_begin = end;
  while (end < all.size() && absl::ascii_isdigit(static_cast<unsigned char>(all[end]))) ++end;
  if (end == digits_begin) return kMalformed;
  const absl::string_view suffix = absl::StripLeadingAsciiWhitespace(all.substr(end));
  for (const Unit& unit : units) {
    if (suffix != unit.suffix) continue;
    ParsedNumber result;
    const bool fits = absl::SimpleAtoi(all.substr(0, end), &result.value) &&
                      !__builtin_mul_overflow(result.value, unit.factor, &result.value);
    return fits ? result : kTooLarge;
  }
  return kMalformed;
}

template <size_t kUnits>
std::string Print(int64_t value, const std::array<Unit, kUnits>& units, const char* zero) {
  if (value == 0) return zero;
  for (const Unit& unit : units) {
    if (value % unit.factor == 0) return absl::StrCat(value / unit.factor, unit.suffix);
  }
  return absl::StrCat(value);
}

}  // namespace

ParsedNumber ParseInteger(const std::string& text) { return Parse(text, std::array<Unit, 1>{{{"", 1}}}); }
ParsedNumber ParseSize(const std::string& text) { return Parse(text, kSizeUnits); }
ParsedNumber ParseDuration(const std::string& text) { return Parse(text, kDurationUnits); }

std::string SizeText(int64_t bytes) { return Print(bytes, kSizeUnits, "0"); }
std::string DurationText(int64_t ms) { return Print(ms, kDurationUnits, "0s"); }

}  // namespace wsync
