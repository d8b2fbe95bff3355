// What must be true of an address before gRPC binds it. gRPC replaces any socket file in its way, and of a failed bind
// it says only that it failed: both are settled here, with plain sockets.
#ifndef WSYNC_SERVER_RPC_LISTEN_H_
#define WSYNC_SERVER_RPC_LISTEN_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/rpc/address.h"

namespace wsync {

// Held while a Unix socket is looked at and bound, so that of two agents started at once one sees the other. Moveable.
class DirectoryLock {
 public:
  DirectoryLock() = default;
  explicit DirectoryLock(int fd) : fd_(fd) {}
  DirectoryLock(DirectoryLock&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  DirectoryLock& operator=(DirectoryLock&& other) noexcept;
  ~DirectoryLock();

 private:
  int fd_ = -1;
};

// OK when a bind of `address` is going to succeed; `config_key` (may be empty) is where the user can change it.
// Unix: removes a socket file that nobody answers on; ALREADY_EXISTS where somebody does. The lock is to be kept until
// the socket is bound. TCP: tries a bind; the lock is empty.
absl::StatusOr<DirectoryLock> PrepareToListen(const Address& address, const std::string& config_key);

// 0 when somebody accepts connections at the Unix socket `path`, else the errno that says why not. Never blocks.
int TryConnect(const std::string& path);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_LISTEN_H_
