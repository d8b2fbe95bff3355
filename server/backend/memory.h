// Memory of the agent's device: its own, and what client processes lend it.
//
// Buffers and mappings are owners: they free or unmap when they go, and must not outlive the Memory they came from.
// Thread-safe.
#ifndef WSYNC_SERVER_BACKEND_MEMORY_H_
#define WSYNC_SERVER_BACKEND_MEMORY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/statusor.h"
#include "server/backend/stream_event.h"

namespace wsync {

struct SharedMemoryHandle {
  std::string name;  // for shm_open; begins with '/'. Or of an open file of a live process: see IsProcessFile
  int64_t bytes = 0;
};
struct CudaIpcHandle {
  std::string handle;       // 64 bytes; names a whole allocation, by its first byte
  std::string device_uuid;  // as nvidia-smi or PyTorch print it, with or without "GPU-"
  int64_t bytes = 0;        // from the allocation's first byte
};
using MemoryHandle = std::variant<SharedMemoryHandle, CudaIpcHandle>;

// "/proc/<pid>/fd/<number>": shared memory without a name, by a descriptor that its owner keeps open. It can be opened
// for as long as that process lives, and nothing is left behind when it dies.
inline bool IsProcessFile(std::string_view name) {
  const auto take = [&name](std::string_view prefix) {
    if (name.substr(0, prefix.size()) != prefix) return false;
    name.remove_prefix(prefix.size());
    const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
    name.remove_prefix(digits);
    return digits > 0 && digits <= 10;
  };
  return take("/proc/") && take("/fd/") && name.empty();
}

// Bytes of the device at a fixed address, released on destruction.
class Buffer {
 public:
  virtual ~Buffer() = default;
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 protected:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

enum class Access { kRead, kReadWrite };

class Memory {
 public:
  virtual ~Memory() = default;
  // Zeroed memory, aligned for the device (at least 128 bytes). RESOURCE_EXHAUSTED says how much was asked for, for
  // what, and how much there is. bytes > 0.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(int64_t bytes, std::string_view purpose) = 0;
  // Memory that another process can open: as Allocate, and `handle` names it while the buffer lives.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> AllocateShared(int64_t bytes, std::string_view purpose,
                                                                 MemoryHandle* handle) = 0;
  // Maps what another process exported. Errors name the handle: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (a
  // handle of another kind, a malformed name, fewer bytes behind it than it claims).
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Open(const MemoryHandle& handle, Access access) = 0;
  // What is wrong with a client's event as far as that shows without the device, so that it can be refused before
  // anything begins. FAILED_PRECONDITION: this device has no streams, and says what to do. INVALID_ARGUMENT: a handle
  // of another size, or of another GPU. Never blocks.
  virtual absl::Status CheckEvent(const EventHandle& handle) const = 0;
  // Errors as CheckEvent; NOT_FOUND: no live process exports it.
  virtual absl::StatusOr<std::unique_ptr<StreamEvent>> OpenEvent(const EventHandle& handle) = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_MEMORY_H_
