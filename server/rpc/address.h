// Addresses as configuration writes them: "host:port", "[v6]:port", "unix:///path". Pure.
#ifndef WSYNC_SERVER_RPC_ADDRESS_H_
#define WSYNC_SERVER_RPC_ADDRESS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace wsync {

inline constexpr size_t kMaxUnixPathBytes = 107;  // sockaddr_un::sun_path holds 108 with the terminating zero

struct Address {
  bool is_unix = false;
  std::string path;  // is_unix: absolute
  std::string host;  // else; without brackets
  uint16_t port = 0;
};

// INVALID_ARGUMENT saying what is wrong and what an address looks like.
absl::StatusOr<Address> ParseAddress(const std::string& text);
// "127.0.0.1:7470", "[::1]:7470", "unix:///run/wsync/trainer.sock"
std::string ToString(const Address& address);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_ADDRESS_H_
