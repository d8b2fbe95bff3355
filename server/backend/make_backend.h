// The backend that a configuration names: what both daemons' mains share.
#ifndef WSYNC_SERVER_BACKEND_MAKE_BACKEND_H_
#define WSYNC_SERVER_BACKEND_MAKE_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/backend/host/backend.h"

namespace wsync {

struct BackendChoice {
  std::string name;  // "host" or "cuda"
  host::HostBackendOptions host;
  int32_t device = 0;         // cuda: ordinal
  int32_t nccl_max_ctas = 0;  // cuda: 0, NCCL decides
};

// FAILED_PRECONDITION: a backend that this binary was built without, or whose hardware or libraries are missing; says
// what to do.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(BackendChoice choice);

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_MAKE_BACKEND_H_
