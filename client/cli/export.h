// What `wsync export` does, for demo and tests too: attach to a rollout agent as its engine, take the version it
// serves, write it as an FP8 checkpoint.
#ifndef WSYNC_CLIENT_CLI_EXPORT_H_
#define WSYNC_CLIENT_CLI_EXPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wsync::cli {

struct ExportRequest {
  std::string out;
  std::string like;  // checkpoint whose config.json and other files are copied; "": none
  std::string socket = "unix:///run/wsync/rollout.sock";
  absl::Duration timeout = absl::Seconds(60);  // for a plan, and again for a version
  bool overwrite = false;
};
struct ExportReport {
  uint64_t version = 0;
  int64_t tensors = 0;
  int64_t bytes = 0;
  std::vector<std::string> notes;
};

// ALREADY_EXISTS: the agent has an engine. DEADLINE_EXCEEDED: nothing was registered or committed in time. Nothing is
// left under `out` after an error.
absl::StatusOr<ExportReport> ExportCheckpoint(const ExportRequest& request);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_EXPORT_H_
