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

// The canonical codes have the same numbers on both sides.
grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), CutMessage(status.message()));
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = status.error_code();
  const bool known = code > 0 && code <= grpc::StatusCode::UNAUTHENTICATED;
  if (code == grpc::StatusCode::UNIMPLEMENTED && status.error_message().empty()) {
    return absl::UnimplementedError(
        "something else answers there: is it the other daemon's socket? wsync-trainer and wsync-rollout have a "
        "local_socket each, and status is asked of coordinator.listen");
  }
  if (code == grpc::StatusCode::DEADLINE_EXCEEDED && status.error_message() == "Deadline Exceeded") {
    return absl::DeadlineExceededError(
        "no answer in time: see 'wsync status', or the agent's log, for what it waits for");
  }
  return absl::Status(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown, status.error_message());
}

}  // namespace wsync
