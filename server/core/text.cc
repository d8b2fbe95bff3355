#include "server/core/text.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace wsync {

std::string FormatBytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  while (std::abs(bytes) >= 999.95 && unit + 1 < std::size(kUnits)) {
    bytes /= 1000;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%.0f B", bytes) : absl::StrFormat("%.1f %s", bytes, kUnits[unit]);
}

std::string FormatMs(double ms) {
  if (ms > 0 && ms < 0.095) return absl::StrFormat("%.2f ms", ms);
  if (ms < 10) return absl::StrFormat("%.1f ms", ms);
  if (ms < 999.5) return absl::StrFormat("%.0f ms", ms);
  if (ms < 59950) return absl::StrFormat("%.2f s", ms / 1000);
  const int64_t seconds = std::llround(ms / 1000);
  return absl::StrFormat("%d min %d s", seconds / 60, seconds % 60);
}

std::string FormatCount(int64_t n) {
  std::string digits = std::to_string(n);
  for (int at = static_cast<int>(digits.size()) - 3; at > (n < 0 ? 1 : 0); at -= 3) digits.insert(at, 1, ',');
  return digits;
}

std::string Counted(int64_t n, std::string_view noun) {
  return absl::StrCat(FormatCount(n), " ", std::string(noun), n == 1 ? "" : "s");
}

std::string Shortened(std::string_view lines) {
  const std::vector<absl::string_view> all =
      absl::StrSplit(absl::string_view(lines.data(), lines.size()), '\n', absl::SkipWhitespace());
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(all.size(), 2); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : " ", absl::StripAsciiWhitespace(all[i]));
  }
  if (all.size() > 2) absl::StrAppend(&text, " ... (", Counted(static_cast<int64_t>(all.size()) - 2, "more line"), ")");
  return text;
}

}  // namespace wsync
