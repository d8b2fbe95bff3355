// What the kernel would give without swapping, in bytes; the largest number where it does not say. To be asked before
// memory is taken: it promises more than it has, and kills the process that touches it.
#ifndef WSYNC_SERVER_CORE_AVAILABLE_MEMORY_H_
#define WSYNC_SERVER_CORE_AVAILABLE_MEMORY_H_

#include <cstdint>

namespace wsync {

int64_t AvailableMemory();

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_AVAILABLE_MEMORY_H_
