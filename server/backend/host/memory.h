// Host memory: anonymous mappings for the agent, POSIX shared memory for what processes lend each other.
//
// Shared segments are "/wsync-<pid>-<random>", mode 0600: only processes of the same user open them, and an operator
// who finds one left by a killed process in /dev/shm sees whose it was.
#ifndef WSYNC_SERVER_BACKEND_HOST_MEMORY_H_
#define WSYNC_SERVER_BACKEND_HOST_MEMORY_H_

#include <memory>
#include <string>
#include <string_view>

#include "server/backend/memory.h"

namespace wsync::host {

class HostMemory final : public Memory {
 public:
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes, std::string_view purpose) override;
  // All pages are reserved here, so that a full /dev/shm is an error now and not a SIGBUS at some later write.
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateShared(int64_t bytes, std::string_view purpose,
                                                         MemoryHandle* handle) override;
  // Nothing but shared memory of this user (or root's) is opened, and nothing is waited for. What the exporting process
  // takes away while it is mapped becomes zeros and is marked: see core/guarded_range.h. RESOURCE_EXHAUSTED: pages that
  // do not exist yet, and cannot.
  absl::StatusOr<std::unique_ptr<Buffer>> Open(const MemoryHandle& handle, Access access) override;
  absl::Status CheckEvent(const EventHandle& handle) const override;
  absl::StatusOr<std::unique_ptr<StreamEvent>> OpenEvent(const EventHandle& handle) override;
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_MEMORY_H_
