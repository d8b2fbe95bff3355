// What this build calls itself, and the protocol it speaks.
#ifndef WSYNC_SERVER_RPC_VERSION_H_
#define WSYNC_SERVER_RPC_VERSION_H_

#include <cstdint>

namespace wsync {

inline constexpr char kSoftwareVersion[] = WSYNC_VERSION;  // CMake's project version
// Join.protocol: raised when a peer of the old number would misunderstand us.
inline constexpr uint32_t kProtocolVersion = 1;

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_VERSION_H_
