#include "client/local/status_client.h"

#include <grpcpp/grpcpp.h>

#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/rpc/server.h"
#include "server/rpc/tls.h"
#include "wsync/v1/coordinator.grpc.pb.h"

namespace wsync {
namespace {

// gRPC's own texts for an unreachable peer name neither the address nor the remedy.
absl::Status Explain(const grpc::Status& status, const std::string& coordinator) {
  const grpc::StatusCode code = status.error_code();
  if (absl::StrContains(status.error_message(), "http2 header with status")) {  // a web server's answer
    return absl::UnavailableError(absl::StrCat("what answers at ", coordinator, " is no coordinator (",
                                               status.error_message(), "): give wsync-trainer's coordinator.listen"));
  }
  if (absl::StrContains(status.error_message(), "C-ares")) {
    return absl::UnavailableError(absl::StrCat("no coordinator answers at ", coordinator, ": no such host is known"));
  }
  if (code != grpc::StatusCode::UNAVAILABLE && code != grpc::StatusCode::DEADLINE_EXCEEDED) return FromGrpc(status);
  return absl::UnavailableError(absl::StrCat("no coordinator answers at ", coordinator,
                                             ": is wsync-trainer running, and is this its coordinator.listen? (",
                                             status.error_message(), ")"));
}

absl::StatusOr<std::unique_ptr<v1::Coordinator::Stub>> NewStub(const std::string& coordinator,
                                                               const v1::TlsConfig& tls) {
  auto credentials = ChannelCredentialsFor(tls);
  if (!credentials.ok()) return credentials.status();
  return v1::Coordinator::NewStub(NewChannel(coordinator, *credentials));
}

template <typename Request, typename Reply>
absl::StatusOr<Reply> Ask(const std::string& coordinator, const v1::TlsConfig& tls, absl::Duration timeout,
                          grpc::Status (v1::Coordinator::Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                          const Request& request = {}) {
  auto stub = NewStub(coordinator, tls);
  if (!stub.ok()) return stub.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  Reply reply;
  const grpc::Status result = ((**stub).*method)(&context, request, &reply);
  if (!result.ok()) return Explain(result, coordinator);
  return reply;
}

}  // namespace

absl::StatusOr<v1::JobStatus> GetJobStatus(const std::string& coordinator, const v1::TlsConfig& tls,
                                           absl::Duration timeout) {
  return Ask(coordinator, tls, timeout, &v1::Coordinator::Stub::GetStatus);
}

absl::StatusOr<v1::VerifyReply> VerifyJob(const std::string& coordinator, const v1::TlsConfig& tls,
                                          absl::Duration timeout) {
  return Ask(coordinator, tls, timeout, &v1::Coordinator::Stub::Verify);
}

absl::StatusOr<v1::UnfenceReply> UnfenceMember(const std::string& coordinator, const v1::TlsConfig& tls,
                                               absl::Duration timeout, const std::string& name) {
  v1::UnfenceRequest request;
  request.set_name(name);
  return Ask(coordinator, tls, timeout, &v1::Coordinator::Stub::Unfence, request);
}

absl::Status WatchJobStatus(const std::string& coordinator, const v1::TlsConfig& tls, absl::Duration min_interval,
                            const std::function<bool(const v1::JobStatus&)>& on_status) {
  auto stub = NewStub(coordinator, tls);
  if (!stub.ok()) return stub.status();
  grpc::ClientContext context;
  v1::WatchStatusRequest request;
  request.set_min_interval_ms(absl::ToInt64Milliseconds(min_interval));
  auto reader = (*stub)->WatchStatus(&context, request);
  v1::JobStatus status;
  while (reader->Read(&status)) {
    if (on_status(status)) continue;
    context.TryCancel();
    (void)reader->Finish();
    return absl::OkStatus();
  }
  return Explain(reader->Finish(), coordinator);
}

}  // namespace wsync
