// Process-wide structured log on spdlog: text for people, JSON for collectors. One line per event; key=value fields.
//
// A flood does not reach the file: of each cause, which is a line's text without numbers and quoted names, so many
// lines are written in ten seconds (log_limiter.h), and then one with the number of the others. Thread-safe.
#ifndef WSYNC_SERVER_RPC_LOG_H_
#define WSYNC_SERVER_RPC_LOG_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace wsync {

struct LogOptions {
  std::string component;        // "trainer", "rollout"
  std::string level = "info";   // trace | debug | info | warn | error
  std::string format = "text";  // text | json
  std::string file;             // empty: stderr
};
// INVALID_ARGUMENT or the errno of a file that cannot be opened. Before it is called, lines go to stderr as text.
absl::Status InitLog(const LogOptions& options);
// Opens the file anew under its name, after something has moved it away: what SIGHUP asks for. Nothing to do for
// stderr. On an error lines go where they went.
absl::Status ReopenLog();
// Tells what was left out in periods that are over. Every line does, so this is for when none comes: now and then.
void TellLeftOutOfLog();

using LogFields = std::vector<std::pair<std::string_view, std::string>>;
// text: 2026-11-22T10:00:00.123Z info  trainer  version committed  version=7 replicas=2/2
// json: {"time":"...","level":"info","component":"trainer","message":"version committed","version":"7",...}
void LogDebug(std::string_view message, const LogFields& fields = {});
void LogInfo(std::string_view message, const LogFields& fields = {});
void LogWarn(std::string_view message, const LogFields& fields = {});
void LogError(std::string_view message, const LogFields& fields = {});
// As LogWarn and LogDebug, for a library's lines, whose text says less of their cause than where they come from.
void LogWarnFrom(std::string_view cause, std::string_view message, const LogFields& fields);
void LogDebugFrom(std::string_view cause, std::string_view message, const LogFields& fields);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_LOG_H_
