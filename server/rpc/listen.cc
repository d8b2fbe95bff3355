#include "server/rpc/listen.h"

#include <fcntl.h>
#include <netdb.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/rpc/errno_text.h"

namespace wsync {
namespace {

constexpr absl::Duration kLockWait = absl::Seconds(2);  // another agent's start holds the lock for milliseconds
constexpr absl::Duration kLockPoll = absl::Milliseconds(10);

class Socket {
 public:
  Socket(int family, int flags) : fd_(socket(family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

absl::Status ListenError(const Address& address, absl::StatusCode code, absl::string_view why, absl::string_view hint) {
  return absl::Status(code, absl::StrCat("cannot listen on ", ToString(address), ": ", why, "; ", hint));
}

std::string SetKey(const std::string& config_key, absl::string_view value) {
  return config_key.empty() ? absl::StrCat("choose ", value) : absl::StrCat("set ", config_key, " to ", value);
}

// ---- TCP

std::string TcpHint(int error, const std::string& key) {
  switch (error) {
    case EADDRINUSE:
      return absl::StrCat("is another wsync agent running there? Stop it, or ", SetKey(key, "a free port"));
    case EADDRNOTAVAIL:
      return absl::StrCat("this host has no such address; ", SetKey(key, "one of its own, or 0.0.0.0:PORT for all"));
    case EACCES:
      return absl::StrCat("ports below 1024 need privileges; ", SetKey(key, "a higher port"));
    default:
      return SetKey(key, "an address of this host");
  }
}

int TryBind(const addrinfo& info) {
  const Socket socket(info.ai_family, 0);
  if (socket.fd() < 0) return errno;
  // As gRPC sets it: connections of an earlier run in TIME_WAIT are no obstacle, a listener still is.
  const int on = 1;
  setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  return bind(socket.fd(), info.ai_addr, info.ai_addrlen) == 0 ? 0 : errno;
}

absl::Status ProbeTcp(const Address& address, const std::string& key) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (failed != 0) {
    return ListenError(address, absl::StatusCode::kInvalidArgument,
                       absl::StrCat("host \"", address.host, "\" cannot be resolved (", gai_strerror(failed), ")"),
                       SetKey(key, "an address of this host"));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  int error = 0;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    error = TryBind(*info);
    if (error == EADDRINUSE) break;
    if (error == 0) return absl::OkStatus();  // gRPC, too, is content with one of a name's addresses
  }
  return ListenError(address, absl::ErrnoToStatusCode(error), ErrnoText(error), TcpHint(error, key));
}

// ---- Unix

sockaddr_un UnixAddress(const std::string& path) {
  sockaddr_un result = {};
  result.sun_family = AF_UNIX;
  std::memcpy(result.sun_path, path.data(), path.size());  // at most kMaxUnixPathBytes: ParseAddress checked
  return result;
}

absl::StatusOr<DirectoryLock> LockDirectory(const Address& address, const std::string& key) {
  const size_t slash = address.path.rfind('/');
  const std::string directory = slash == 0 ? "/" : address.path.substr(0, slash);
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    const int error = errno;
    const std::string hint = error == ENOENT ? absl::StrCat("create it (mkdir -p ", directory, "), or ",
                                                            SetKey(key, "a path in a directory that exists"))
                                             : absl::StrCat("check its permissions, or ", SetKey(key, "another path"));
    return ListenError(address, absl::ErrnoToStatusCode(error),
                       absl::StrCat("directory ", directory, ": ", ErrnoText(error)), hint);
  }
  DirectoryLock lock(fd);
  const absl::Time deadline = MonotonicNow() + kLockWait;
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (MonotonicNow() >= deadline) {
      return ListenError(address, absl::StatusCode::kUnavailable,
                         absl::StrCat("another process holds a lock on ", directory), "try again when it is done");
    }
    const timespec pause = absl::ToTimespec(kLockPoll);
    nanosleep(&pause, nullptr);
  }
  return lock;
}

absl::Status RemoveStaleSocket(const Address& address, const std::string& key) {
  struct stat info = {};
  if (lstat(address.path.c_str(), &info) != 0) return absl::OkStatus();  // the bind tells what is wrong, if anything
  if (!S_ISSOCK(info.st_mode)) {
    return ListenError(address, absl::StatusCode::kFailedPrecondition, "a file that is no socket is in the way",
                       absl::StrCat("remove it, or ", SetKey(key, "another path")));
  }
  const int error = TryConnect(address.path);
  if (error == 0) {
    return ListenError(address, absl::StatusCode::kAlreadyExists, "somebody answers on it",
                       absl::StrCat("another wsync agent is running; stop it, or ", SetKey(key, "another path")));
  }
  if (error != ECONNREFUSED) {
    return ListenError(
        address, absl::ErrnoToStatusCode(error),
        absl::StrCat("the socket that is there cannot be tried: ", ErrnoText(error)),
        absl::StrCat(error == EACCES ? "run as its owner, or " : "remove it, or ", SetKey(key, "another path")));
  }
  if (unlink(address.path.c_str()) == 0) return absl::OkStatus();
  const int unlink_error = errno;
  return ListenError(address, absl::ErrnoToStatusCode(unlink_error),
                     absl::StrCat("a stale socket cannot be removed: ", ErrnoText(unlink_error)),
                     absl::StrCat("remove it, or ", SetKey(key, "another path")));
}

absl::Status ProbeUnix(const Address& address, const std::string& key) {
  const Socket socket(AF_UNIX, 0);
  const sockaddr_un target = UnixAddress(address.path);
  if (socket.fd() >= 0 && bind(socket.fd(), reinterpret_cast<const sockaddr*>(&target), sizeof(target)) == 0) {
    unlink(address.path.c_str());
    return absl::OkStatus();
  }
  const int error = errno;
  return ListenError(address, absl::ErrnoToStatusCode(error), ErrnoText(error),
                     absl::StrCat("run as a user who may write there, or ", SetKey(key, "another path")));
}

}  // namespace

DirectoryLock& DirectoryLock::operator=(DirectoryLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

DirectoryLock::~DirectoryLock() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<DirectoryLock> PrepareToListen(const Address& address, const std::string& config_key) {
  if (!address.is_unix) {
    if (absl::Status s = ProbeTcp(address, config_key); !s.ok()) return s;
    return DirectoryLock();
  }
  auto lock = LockDirectory(address, config_key);
  if (!lock.ok()) return lock.status();
  if (absl::Status s = RemoveStaleSocket(address, config_key); !s.ok()) return s;
  if (absl::Status s = ProbeUnix(address, config_key); !s.ok()) return s;
  return lock;
}

int TryConnect(const std::string& path) {
  const Socket socket(AF_UNIX, SOCK_NONBLOCK);
  if (socket.fd() < 0) return errno;
  const sockaddr_un target = UnixAddress(path);
  if (connect(socket.fd(), reinterpret_cast<const sockaddr*>(&target), sizeof(target)) == 0) return 0;
  return errno == EAGAIN ? 0 : errno;  // a full backlog is an answer, too
}

}  // namespace wsync
