#include "client/local/connect.h"

#include <grpcpp/grpcpp.h>

#include <chrono>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/server.h"

namespace wsync {

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectLocal(const std::string& socket, absl::Duration timeout,
                                                            const std::string& daemon, const std::string& where) {
  if (!absl::StartsWith(socket, "unix:///")) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", socket, "' is not a local socket; expected unix:///path, as ", where, " has it"));
  }
  auto channel = NewChannel(socket, grpc::InsecureChannelCredentials());
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout))) {
    return absl::UnavailableError(absl::StrCat("no ", daemon, " answers at ", socket, ": start one with '", daemon,
                                               " --config FILE', or give its socket (", where, ")"));
  }
  return channel;
}

}  // namespace wsync
