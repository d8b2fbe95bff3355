// What of NCCL's surroundings must be the same on every rank, and the form in which its session ids travel. Pure.
#ifndef WSYNC_SERVER_BACKEND_CUDA_NCCL_ENVIRONMENT_H_
#define WSYNC_SERVER_BACKEND_CUDA_NCCL_ENVIRONMENT_H_

#include <nccl.h>

#include <string>

#include "absl/status/statusor.h"

namespace wsync::cuda {

// "nccl 2.28.9; max_ctas 16; NCCL_ALGO=Ring": version, CTAs where set, and the NCCL_* variables in alphabetical order,
// without those that may differ from host to host (interfaces, logs, files). Ranks that disagree on the rest build
// different channels, and wait for each other without end. `environment` as environ(7): null-terminated.
std::string NcclFingerprint(int version, int max_ctas, const char* const* environment);

// A unique id as hexadecimal digits: a token is text on the wire. The id holds the address of rank 0's listener and a
// random number that peers must know: a secret.
std::string TokenOf(const ncclUniqueId& id);
// INVALID_ARGUMENT, without the token in it: not a token of TokenOf.
absl::StatusOr<ncclUniqueId> UniqueIdOf(const std::string& token);

}  // namespace wsync::cuda

#endif  // WSYNC_SERVER_BACKEND_CUDA_NCCL_ENVIRONMENT_H_
