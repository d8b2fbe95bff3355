// Text that every proto3 receiver takes.
#ifndef WSYNC_SERVER_RPC_WIRE_TEXT_H_
#define WSYNC_SERVER_RPC_WIRE_TEXT_H_

#include <string>

#include "absl/strings/string_view.h"

namespace wsync {

// Text for a proto3 string field: what is not UTF-8 becomes '?'. Receivers refuse a whole message for one such byte, so
// every text that does not come out of a proto (errno texts, paths, cut messages) goes through this.
std::string WireText(absl::string_view text);

// Somebody else's text inside a message of ours: in double quotes, escaped, and cut after 100 bytes.
std::string Quoted(absl::string_view text);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_WIRE_TEXT_H_
