#include "server/rpc/address.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace wsync {
namespace {

constexpr char kUnixPrefix[] = "unix://";

absl::StatusOr<Address> ParseUnix(absl::string_view text, absl::string_view path) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" has no absolute path; expected such as unix:///run/wsync/trainer.sock"));
  }
  if (path.size() > kMaxUnixPathBytes) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\": a Unix socket's path holds at most ",
                                                   kMaxUnixPathBytes, " bytes, this one has ", path.size(),
                                                   "; choose a shorter directory"));
  }
  return Address{.is_unix = true, .path = std::string(path)};
}

absl::StatusOr<Address> ParseTcp(absl::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" has no port; expected host:port such as 127.0.0.1:7470"));
  }
  absl::string_view host = text.substr(0, colon);
  const bool bracketed = absl::ConsumePrefix(&host, "[") && absl::ConsumeSuffix(&host, "]");
  if (host.empty() || (!bracketed && host.find_first_of(":[]/ ") != absl::string_view::npos)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" has no valid host; expected such as 127.0.0.1:7470 or [::1]:7470"));
  }
  const absl::string_view digits = text.substr(colon + 1);
  uint32_t port = 0;
  const bool numeric = digits.find_first_not_of("0123456789") == absl::string_view::npos;
  if (!numeric || !absl::SimpleAtoi(digits, &port) || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\": port \"", digits, "\" is not 0 to 65535"));
  }
  return Address{.host = std::string(host), .port = static_cast<uint16_t>(port)};
}

}  // namespace

absl::StatusOr<Address> ParseAddress(const std::string& text) {
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, kUnixPrefix)) return ParseUnix(text, rest);
  if (absl::ConsumePrefix(&rest, "unix:")) return ParseUnix(text, rest);
  return ParseTcp(text);
}

std::string ToString(const Address& address) {
  if (address.is_unix) return absl::StrCat(kUnixPrefix, address.path);
  const bool v6 = address.host.find(':') != std::string::npos;
  return v6 ? absl::StrCat("[", address.host, "]:", address.port) : absl::StrCat(address.host, ":", address.port);
}

}  // namespace wsync
