#include "server/backend/cuda/nccl_environment.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/backend/cuda/nccl_library.h"

namespace wsync::cuda {
namespace {

// Names of interfaces and cards, addresses, files and logs are a host's own affair; so is where NCCL is installed,
// which images and build scripts leave in the environment, and NCCL itself does not read.
constexpr std::string_view kPerHost[] = {
    "NCCL_COMM_ID",
    "NCCL_CONF_FILE",
    "NCCL_DEBUG",
    "NCCL_DEBUG_FILE",
    "NCCL_DEBUG_SUBSYS",
    "NCCL_DEBUG_TIMESTAMP_FORMAT",
    "NCCL_DEBUG_TIMESTAMP_LEVELS",
    "NCCL_GRAPH_DUMP_FILE",
    "NCCL_HOME",
    "NCCL_HOSTID",
    "NCCL_IB_GID_INDEX",
    "NCCL_IB_HCA",
    "NCCL_INCLUDE_DIR",
    "NCCL_LIB_DIR",
    "NCCL_OOB_NET_IFNAME",
    "NCCL_RAS_ADDR",
    "NCCL_ROOT",
    "NCCL_SOCKET_IFNAME",
    "NCCL_TOPO_DUMP_FILE",
    "NCCL_TOPO_FILE",
    "NCCL_VERSION",
};

bool IsShared(std::string_view variable) {
  if (variable.substr(0, 5) != "NCCL_") return false;
  const std::string_view name = variable.substr(0, variable.find('='));
  return std::find(std::begin(kPerHost), std::end(kPerHost), name) == std::end(kPerHost);
}

}  // namespace

std::string NcclFingerprint(int version, int max_ctas, const char* const* environment) {
  std::vector<std::string> parts;
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    if (IsShared(*environment)) parts.emplace_back(*environment);
  }
  std::sort(parts.begin(), parts.end());
  if (max_ctas > 0) parts.insert(parts.begin(), absl::StrCat("max_ctas ", max_ctas));
  parts.insert(parts.begin(), absl::StrCat("nccl ", NcclVersionText(version)));
  return absl::StrJoin(parts, "; ");
}

std::string TokenOf(const ncclUniqueId& id) {
  return absl::BytesToHexString(absl::string_view(id.internal, sizeof(id.internal)));
}

absl::StatusOr<ncclUniqueId> UniqueIdOf(const std::string& token) {
  ncclUniqueId id = {};
  const bool well_formed = token.size() == 2 * sizeof(id.internal) &&
                           std::all_of(token.begin(), token.end(), [](char c) { return absl::ascii_isxdigit(c); });
  if (!well_formed) {
    return absl::InvalidArgumentError(absl::StrCat("data plane: a session token of ", token.size(),
                                                   " characters is not NCCL's (", 2 * sizeof(id.internal),
                                                   " hexadecimal digits); do trainer and rollouts all run with "
                                                   "transfer.backend: cuda?"));
  }
  const std::string bytes = absl::HexStringToBytes(token);
  std::memcpy(id.internal, bytes.data(), sizeof(id.internal));
  return id;
}

}  // namespace wsync::cuda
