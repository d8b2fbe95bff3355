#include "server/rpc/wire_text.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/core/printable.h"

namespace wsync {
namespace {

constexpr size_t kMaxQuotedBytes = 100;  // a line of a terminal, roughly; longer text says nothing more about itself

bool IsUtf8Continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

std::string WireText(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = Utf8Length(std::string_view(text.data(), text.size()));
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
