#include "server/rpc/grpc_log.h"

#include <grpc/support/log.h>

#include <atomic>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/rpc/log.h"

namespace wsync {
namespace {

std::atomic<bool> listener_ended = false;

void Take(gpr_log_func_args* args) {
  const absl::string_view text = args->message;
  if (absl::StartsWith(text, "Failed accept4")) listener_ended = true;
  const LogFields fields = {{"from", absl::StrCat(args->file, ":", args->line)}};
  const std::string message = absl::StrCat("gRPC: ", text);
  if (args->severity == GPR_LOG_SEVERITY_ERROR)
    return LogWarn(message, fields);  // it is an error to gRPC, not yet to us
  LogDebug(message, fields);
}

}  // namespace

void TakeGrpcLog() { gpr_set_log_function(Take); }

absl::Status ListenersHealth() {
  if (!listener_ended) return absl::OkStatus();
  return absl::InternalError(
      "a listener has ended, since a connection could not be accepted: is the limit of open files (ulimit -n) too "
      "low?");
}

}  // namespace wsync
