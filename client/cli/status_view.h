// A JobStatus as a person reads it, and as a program does. Pure: proto in, text out.
#ifndef WSYNC_CLIENT_CLI_STATUS_VIEW_H_
#define WSYNC_CLIENT_CLI_STATUS_VIEW_H_

#include <cstddef>
#include <string>

#include "client/cli/command.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync::cli {

inline constexpr size_t kMaxMembersShown = 60;  // more than a person reads, and a screen or two

struct StatusViewOptions {
  bool wide = false;  // more columns, full digests
  bool color = false;
  int max_events = 8;  // newest
  // Of more members than these, the trainer and those that are not well are shown first, and the rest counted.
  size_t max_members = kMaxMembersShown;
};
std::string RenderStatus(const v1::JobStatus& status, const StatusViewOptions& options);
// One JSON object, keys as in the proto, numbers as numbers, digests in hex as the tables have them; a newline at the
// end.
std::string StatusJson(const v1::JobStatus& status);
// 0 in sync (or nothing published yet and nothing wrong), 3 degraded.
ExitCode StatusExit(const v1::JobStatus& status);

// Members side by side with the digest of what they serve, of many those that differ first; `agree` says whether all
// equal the committed version's.
std::string RenderVerify(const v1::JobStatus& status, bool color, bool* agree);
// The same for VerifyJob's reply: what the engines' memories hold now. A member that could not be asked does not agree.
std::string RenderDeepVerify(const v1::JobStatus& status, const v1::VerifyReply& reply, bool color, bool* agree);

std::string HashHex(const v1::Hash& hash);
std::string ShortHash(const v1::Hash& hash);  // first 12 digits, "-" for none

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_STATUS_VIEW_H_
