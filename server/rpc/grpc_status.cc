#include <algorithm>
#include <cstddef>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/rpc/convert.h"

namespace wsync {
namespace {

// Peers drop a call whose trailing metadata exceeds 8 KiB (gRPC's default), error and all. The rest of the 8 KiB is
// room for gRPC's own trailers and the note about what was cut.
constexpr size_t kMaxWireBytes = 7 << 10;

// What a byte costs in the grpc-message header, which is percent-encoded.
size_t WireBytes(char c) { return c >= ' ' && c <= '~' && c != '%' ? 1 : 3; }

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

std::string CutMessage(absl::string_view message) {
  size_t wire_bytes = 0;
  size_t keep = 0;
  while (keep < message.size() && wire_bytes + WireBytes(message[keep]) <= kMaxWireBytes) {
    wire_bytes += WireBytes(message[keep++]);
  }
  if (keep == message.size()) return std::string(message);
  while (keep > 0 && IsUtf8Continuation(message[keep])) --keep;
  return absl::StrCat(message.substr(0, keep), "... (", message.size() - keep, " bytes more)");
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

// The canonical codes have the same numbers on both sides.
grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), CutMessage(status.message()));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = status.error_code();
  const bool known = code > 0 && code <= grpc::StatusCode::UNAUTHENTICATED;
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown, status.error_message());
}

}  // namespace wsync
