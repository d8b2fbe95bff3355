#include "server/rpc/grpc_log.h"

#include <grpc/support/log.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/rpc/log.h"

namespace wsync {
namespace {

// Why a connection was not accepted, which is the end of the listener; null: none was refused.
std::atomic<const std::string*> listener_ended = nullptr;

void Take(gpr_log_func_args* args) {
  const absl::string_view text = args->message;
  if (absl::StartsWith(text, "Failed accept4")) {
    const std::string* none = nullptr;
    auto why = std::make_unique<const std::string>(text);
    if (listener_ended.compare_exchange_strong(none, why.get())) (void)why.release();  // for as long as the process
  }
  const std::string from = absl::StrCat(args->file, ":", args->line);
  const std::string message = absl::StrCat("gRPC: ", text);
  // It is an error to gRPC, not yet to us.
  (args->severity == GPR_LOG_SEVERITY_ERROR ? LogWarnFrom : LogDebugFrom)(from, message, {{"from", from}});
}

}  // namespace

void TakeGrpcLog() {
  gpr_set_log_function(Take);
  gpr_log_verbosity_init();
  // Whatever GRPC_VERBOSITY says: an end of a listener is told as an error, and nowhere else.
  if (gpr_should_log(GPR_LOG_SEVERITY_ERROR) == 0) gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
}

absl::Status ListenersHealth() {
  const std::string* const why = listener_ended;
  if (why == nullptr) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("a listener has ended, since a connection could not be accepted: ", *why,
                   "; if it had too many open files, raise their limit (ulimit -n, LimitNOFILE) or look who connects"));
}

}  // namespace wsync
