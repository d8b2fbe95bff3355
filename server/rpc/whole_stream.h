// Whether a list that came in chunks is whole. A stream that breaks and one that was sent to its end look the same to
// who reads it, so the header says how many there are.
#ifndef WSYNC_SERVER_RPC_WHOLE_STREAM_H_
#define WSYNC_SERVER_RPC_WHOLE_STREAM_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wsync {

// At the end of the stream. `announced`: by the header; nullopt: the client is older than that, and only a call that
// nobody has `cancelled` can be taken for whole. INVALID_ARGUMENT names both numbers, of `what` ("tensors").
inline absl::Status CheckWhole(std::optional<uint64_t> announced, uint64_t came, bool cancelled,
                               const std::string& what) {
  if (cancelled) return absl::CancelledError("the caller hung up");
  if (!announced.has_value() || *announced == came) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the stream ended with ", came, " ", what, " where its header says ",
                                                 *announced, ": nothing was taken; send all of it again"));
}

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_WHOLE_STREAM_H_
