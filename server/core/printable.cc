#include "server/core/printable.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_format.h"

namespace wsync {
namespace {

struct Range {
  char32_t first, last;
};

template <size_t N>
bool InAny(const Range (&ranges)[N], char32_t c) {  // REQUIRES: sorted
  const Range* end = std::upper_bound(std::begin(ranges), std::end(ranges), c,
                                      [](char32_t value, const Range& range) { return value < range.first; });
  return end != std::begin(ranges) && c <= std::prev(end)->last;
}

constexpr Range kUnsafe[] = {
    {0x00, 0x1F},     {0x7F, 0x9F},       {0x061C, 0x061C}, {0x200B, 0x200B},
    {0x200E, 0x200F}, {0x2028, 0x202E},  // line and paragraph separators, embeddings and overrides of direction
    {0x2060, 0x206F},                    // word joiner, isolates
    {0xFEFF, 0xFEFF},                    // byte order mark
    {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F},
};

constexpr Range kWide[] = {
    {0x1100, 0x115F},   {0x2E80, 0x303E},   {0x3041, 0x33FF},   {0x3400, 0x4DBF},   {0x4E00, 0x9FFF}, {0xA000, 0xA4CF},
    {0xA960, 0xA97F},   {0xAC00, 0xD7A3},   {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60}, {0xFFE0, 0xFFE6},
    {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1F9FF}, {0x20000, 0x3FFFD},
};

constexpr Range kCombining[] = {
    {0x0300, 0x036F}, {0x0483, 0x0489}, {0x0591, 0x05BD},   {0x064B, 0x065F}, {0x093C, 0x093C},
    {0x094D, 0x094D}, {0x1AB0, 0x1AFF}, {0x1DC0, 0x1DFF},   {0x200C, 0x200D}, {0x20D0, 0x20FF},
    {0xFE00, 0xFE0F}, {0xFE20, 0xFE2F}, {0xE0100, 0xE01EF},
};

// Length of "\033[...m" at the front, 0 if there is none. Only colours and weights: nothing that moves or erases.
size_t ColorLength(std::string_view text) {
  if (!text.starts_with("\033[")) return 0;
  const size_t end = text.find_first_not_of("0123456789;", 2);
  return end != std::string_view::npos && text[end] == 'm' ? end + 1 : 0;
}

std::string EscapeOf(char32_t c) {
  if (c == '\n') return "\\n";
  if (c == '\t') return "\\t";
  if (c == '\r') return "\\r";
  const auto number = static_cast<uint32_t>(c);
  return c < 0x100 ? absl::StrFormat("\\x%02x", number) : absl::StrFormat("\\u%04x", number);
}

enum class Keep { kNothing, kLines, kLinesAndColors };

std::string Escape(std::string_view text, Keep keep, size_t max_bytes) {
  std::string result;
  result.reserve(std::min(text.size(), max_bytes));
  while (!text.empty()) {
    if (result.size() >= max_bytes) return result + "...";
    const size_t color = keep == Keep::kLinesAndColors ? ColorLength(text) : 0;
    const size_t length = color > 0 ? color : Utf8Length(text);
    if (color > 0) {
      result.append(text.substr(0, color));
    } else if (length == 0) {
      result += absl::StrFormat("\\x%02x", static_cast<unsigned char>(text[0]));
    } else if (text[0] == '\n' && keep != Keep::kNothing) {
      result += keep == Keep::kLines ? "\n  " : "\n";
    } else if (const char32_t c = CodePoint(text.substr(0, length)); InAny(kUnsafe, c)) {
      result += EscapeOf(c);
    } else {
      result.append(text.substr(0, length));
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return result;
}

}  // namespace

size_t Utf8Length(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3 : 4;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  const bool bad = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                   (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return bad ? 0 : length;
}

char32_t CodePoint(std::string_view character) {
  const auto byte = [character](size_t i) { return static_cast<unsigned char>(character[i]); };
  if (character.size() == 1) return byte(0);
  char32_t c = byte(0) & (0x7F >> character.size());
  for (size_t i = 1; i < character.size(); ++i) c = c << 6 | (byte(i) & 0x3F);
  return c;
}

std::string Printable(std::string_view text, size_t max_bytes) { return Escape(text, Keep::kNothing, max_bytes); }

std::string PrintableLines(std::string_view text, size_t max_bytes) { return Escape(text, Keep::kLines, max_bytes); }

std::string PrintableScreen(std::string_view text) { return Escape(text, Keep::kLinesAndColors, text.size() * 4 + 1); }

std::string PrintableJson(std::string_view json) {
  std::string result;
  result.reserve(json.size());
  while (!json.empty()) {
    const size_t length = std::max<size_t>(Utf8Length(json), 1);
    const char32_t c = CodePoint(json.substr(0, length));
    if (c < 0x20 || !InAny(kUnsafe, c)) {  // C0 is white space between values; strings have it escaped already
      result.append(json.substr(0, length));
    } else if (c < 0x10000) {
      result += absl::StrFormat("\\u%04x", static_cast<uint32_t>(c));
    } else {
      const auto rest = static_cast<uint32_t>(c) - 0x10000;
      result += absl::StrFormat("\\u%04x\\u%04x", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
    }
    json.remove_prefix(length);
  }
  return result;
}

size_t VisibleWidth(std::string_view text) {
  size_t width = 0;
  while (!text.empty()) {
    const size_t color = ColorLength(text);
    const size_t length = color > 0 ? color : std::max<size_t>(Utf8Length(text), 1);
    if (color == 0) {
      const char32_t c = CodePoint(text.substr(0, length));
      width += InAny(kCombining, c) ? 0 : InAny(kWide, c) ? 2 : 1;
    }
    text.remove_prefix(length);
  }
  return width;
}

}  // namespace wsync
