#include "server/rpc/wire_text.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

constexpr size_t kMaxQuotedBytes = 100;  // a line of a terminal, roughly; longer text says nothing more about itself

bool IsUtf8Continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Bytes of the character that `text` begins with; 0 where it is not UTF-8 (RFC 3629: no overlong forms, no surrogates).
size_t Utf8Length(absl::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first <= 0xDF ? 2 : first >= 0xE0 && first <= 0xEF ? 3 : 4;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!IsUtf8Continuation(text[i])) return 0;
  }
  const unsigned char second = byte(1);
  const bool bad = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                   (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return bad ? 0 : length;
}

}  // namespace

std::string WireText(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    if (length == 0) {
      result += '?';
    } else {
      result.append(text.data(), length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return result;
}

std::string Quoted(absl::string_view text) {
  size_t keep = std::min(text.size(), kMaxQuotedBytes);
  while (keep > 0 && keep < text.size() && IsUtf8Continuation(text[keep])) --keep;
  const absl::string_view head = text.substr(0, keep);
  const bool is_utf8 = WireText(head) == head;
  return absl::StrCat("\"", is_utf8 ? absl::Utf8SafeCHexEscape(head) : absl::CHexEscape(head),
                      keep < text.size() ? "...\"" : "\"");
}

}  // namespace wsync
