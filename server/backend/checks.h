// What every backend refuses, and what it says of bytes that are not those that were sent: one place, one wording.
// Stateless.
#ifndef WSYNC_SERVER_BACKEND_CHECKS_H_
#define WSYNC_SERVER_BACKEND_CHECKS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/backend/transport.h"
#include "server/core/destinations.h"
#include "server/core/plan.h"

namespace wsync {

// INVALID_ARGUMENT: not one address per catalog tensor, or one that is not aligned for its dtype (named).
absl::Status CheckSources(const Plan& plan, absl::Span<const std::byte* const> tensors);
// INVALID_ARGUMENT: a table that is neither empty nor made for this plan, or that names one of more than `handles`.
absl::Status CheckScatterTable(const Plan& plan, const ScatterTable& table, size_t handles);
// INVALID_ARGUMENT: no such bucket. `what` was to be done with it: "encode".
absl::Status CheckBucket(const Plan& plan, int64_t bucket, const char* what);
// INVALID_ARGUMENT: a rank outside [0, world), an empty token.
absl::Status CheckSession(const SessionSpec& spec);

// FAILED_PRECONDITION: `what` ("the memory of tensor 'x'") was lent by a client, and is not there any more.
absl::Status MemoryCutError(const std::string& what);
// DATA_LOSS naming the rows, tensor and bucket of piece `piece`, whose digest is not the one in the bucket's table.
absl::Status MismatchError(const Plan& plan, int64_t bucket, int64_t piece);

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_CHECKS_H_
