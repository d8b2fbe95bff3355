#include "client/local/connect.h"

#include <grpcpp/grpcpp.h>

#include <cerrno>
#include <chrono>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/errno_text.h"
#include "server/rpc/listen.h"
#include "server/rpc/server.h"

namespace wsync {
namespace {

// What a socket that does not answer looks like from here; gRPC does not say.
std::string Looks(int error) {
  if (error == 0) return " (something listens there and does not answer: is it stopped?)";
  if (error == ECONNREFUSED) return " (nobody listens there any more)";
  return absl::StrCat(" (", ErrnoText(error), ")");
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectLocal(const std::string& socket, absl::Duration timeout,
                                                            const std::string& daemon, const std::string& where) {
  if (!absl::StartsWith(socket, "unix:///")) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", socket, "' is not a local socket; expected unix:///path, as ", where, " has it"));
  }
  const std::string path = socket.substr(std::string_view("unix://").size());
  if (TryConnect(path) == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat("may not connect to ", socket, ": permission denied; run as ",
                                                    daemon, "'s user, or give its local_socket a directory of yours"));
  }
  auto channel = NewChannel(socket, grpc::InsecureChannelCredentials());
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout))) {
    return absl::UnavailableError(absl::StrCat("no ", daemon, " answers at ", socket, Looks(TryConnect(path)),
                                               ": start one with '", daemon, " --config FILE', or give its socket (",
                                               where, ")"));
  }
  return channel;
}

}  // namespace wsync
