// The build's name and version, as --version, status and Join show it.
#ifndef WSYNC_SERVER_RPC_VERSION_H_
#define WSYNC_SERVER_RPC_VERSION_H_

#include <cstdint>
#include <string_view>

namespace wsync {

inline constexpr std::string_view kVersion = WSYNC_VERSION;            // "0.1.0"
inline constexpr std::string_view kSoftware = "wsync " WSYNC_VERSION;  // "wsync 0.1.0"
// Join.protocol: raised when a peer of the old number would misunderstand us.
inline constexpr uint32_t kProtocolVersion = 2;

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_VERSION_H_
