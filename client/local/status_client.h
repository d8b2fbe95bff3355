// Reads a job's status from its coordinator, over TCP with the same TLS files as the agents.
#ifndef WSYNC_CLIENT_LOCAL_STATUS_CLIENT_H_
#define WSYNC_CLIENT_LOCAL_STATUS_CLIENT_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "wsync/v1/config.pb.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

// UNAVAILABLE: "no coordinator answers at 127.0.0.1:7470: ...".
absl::StatusOr<v1::JobStatus> GetJobStatus(const std::string& coordinator, const v1::TlsConfig& tls,
                                           absl::Duration timeout);

// Has every member digest again what its engine's memory holds. UNAVAILABLE as above; members that did not answer
// within `timeout` are in the reply.
absl::StatusOr<v1::VerifyReply> VerifyJob(const std::string& coordinator, const v1::TlsConfig& tls,
                                          absl::Duration timeout);

// Lets a member that was fenced take part again; empty: all of them. NOT_FOUND says who is fenced.
absl::StatusOr<v1::UnfenceReply> UnfenceMember(const std::string& coordinator, const v1::TlsConfig& tls,
                                               absl::Duration timeout, const std::string& name);

// Calls `on_status` now and on every change until it returns false (then OK) or the stream breaks (its error).
absl::Status WatchJobStatus(const std::string& coordinator, const v1::TlsConfig& tls, absl::Duration min_interval,
                            const std::function<bool(const v1::JobStatus&)>& on_status);

}  // namespace wsync

#endif  // WSYNC_CLIENT_LOCAL_STATUS_CLIENT_H_
