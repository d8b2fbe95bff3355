#include "server/rpc/config_check.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/address.h"
#include "server/rpc/config.h"
#include "server/rpc/config_schema.h"
#include "server/rpc/config_units.h"
#include "server/rpc/convert.h"
#include "server/rpc/wire_text.h"
#include "wsync/v1/config.pb.h"

namespace wsync {
namespace {

constexpr size_t kMaxNameBytes = 128;  // of job, agent and replica: they are columns of the status table

class Checker {
 public:
  void Check(bool good, std::vector<std::string> paths, std::string text) {
    if (!good) problems_.push_back({std::move(paths), std::move(text)});
  }

  void CheckName(const std::string& path, const std::string& name) {
    bool printable = name.size() <= kMaxNameBytes;
    for (const char c : name) printable = printable && !absl::ascii_iscntrl(static_cast<unsigned char>(c));
    Check(printable, {path},
          absl::StrCat(path, ": ", Quoted(name), " is not a name; expected at most ", kMaxNameBytes,
                       " bytes without control characters"));
  }

  void CheckUnixAddress(const std::string& path, const std::string& text) {
    if (text.rfind('/', 0) == 0) {
      return Check(false, {path}, absl::StrCat(path, ": ", Quoted(text), " has no scheme; write unix://", text));
    }
    const auto address = ParseAddress(text);
    if (!address.ok()) return Check(false, {path}, absl::StrCat(path, ": ", address.status().message()));
    Check(
        address->is_unix, {path},
        absl::StrCat(path, ": ", Quoted(text), " is not a Unix socket; expected such as unix:///run/wsync/agent.sock"));
  }

  // `dialled`: others connect to it, so port 0 means nothing.
  void CheckTcpAddress(const std::string& path, const std::string& text, bool dialled) {
    const auto address = ParseAddress(text);
    if (!address.ok()) return Check(false, {path}, absl::StrCat(path, ": ", address.status().message()));
    Check(!address->is_unix, {path},
          absl::StrCat(path, ": ", Quoted(text), " is a Unix socket; expected host:port such as 127.0.0.1:7470"));
    Check(address->is_unix || !dialled || address->port != 0, {path},
          absl::StrCat(path, ": port 0 cannot be connected to; expected the port the trainer agent listens on"));
  }

  void CheckTls(const v1::TlsConfig& tls) {
    const int given = !tls.ca_file().empty() + !tls.cert_file().empty() + !tls.key_file().empty();
    Check(given == 0 || given == 3, {"tls.ca_file", "tls.cert_file", "tls.key_file"},
          "tls.ca_file, tls.cert_file and tls.key_file go together; set all three, or none for no TLS");
    Check(given > 0 || tls.allowed_peers().empty(), {"tls.allowed_peers"},
          "tls.allowed_peers has no effect without TLS; set tls.ca_file, tls.cert_file and tls.key_file too");
  }

  std::vector<CrossProblem> Take() { return std::move(problems_); }

 private:
  std::vector<CrossProblem> problems_;
};

void CheckCoordinator(const v1::CoordinatorConfig& config, Checker* checker) {
  checker->CheckTcpAddress("coordinator.listen", config.listen(), false);
  if (!config.advertise().empty()) checker->CheckTcpAddress("coordinator.advertise", config.advertise(), true);
  checker->Check(config.heartbeat_timeout_ms() >= 2 * config.heartbeat_ms(),
                 {"coordinator.heartbeat_timeout_ms", "coordinator.heartbeat_ms"},
                 absl::StrCat("coordinator.heartbeat_timeout_ms (", DurationText(config.heartbeat_timeout_ms()),
                              ") must be at least twice coordinator.heartbeat_ms (",
                              DurationText(config.heartbeat_ms()), "), or one late report loses a member"));
  const bool quorum = config.policy() == "quorum";
  checker->Check(!quorum || config.quorum() >= config.min_replicas(),
                 {"coordinator.quorum", "coordinator.min_replicas"},
                 absl::StrCat("coordinator.quorum (", config.quorum(), ") must be at least coordinator.min_replicas (",
                              config.min_replicas(), "): fewer replicas never commit a version"));
  checker->Check(quorum || config.quorum() <= 1, {"coordinator.quorum", "coordinator.policy"},
                 absl::StrCat("coordinator.quorum (", config.quorum(), ") has no effect under coordinator.policy ",
                              config.policy(), "; set coordinator.policy to quorum"));
}

void CheckTrainer(const v1::TrainerConfig& config, Checker* checker) {
  checker->CheckName("job", config.job());
  checker->CheckUnixAddress("local_socket", config.local_socket());
  CheckCoordinator(config.coordinator(), checker);
  const auto rules = FromConfig(config.recipe());
  checker->Check(rules.ok(),
                 {"recipe.include", "recipe.exclude", "recipe.modules_to_not_convert", "recipe.allow_infinities"},
                 absl::StrCat("recipe: ", rules.status().message()));
  checker->CheckTls(config.tls());
}

void CheckRollout(const v1::RolloutConfig& config, Checker* checker) {
  checker->CheckName("job", config.job());
  checker->CheckName("name", config.name());
  checker->CheckName("replica", config.replica());
  checker->Check(config.rank() < config.replica_size(), {"rank", "replica_size"},
                 absl::StrCat("rank (", config.rank(), ") must be less than replica_size (", config.replica_size(),
                              "): ranks count from 0"));
  checker->CheckUnixAddress("local_socket", config.local_socket());
  checker->CheckTcpAddress("coordinator", config.coordinator(), true);
  checker->CheckTls(config.tls());
}

}  // namespace

std::vector<CrossProblem> FindCrossProblems(const google::protobuf::Message& config) {
  Checker checker;
  if (const auto* trainer = google::protobuf::DynamicCastToGenerated<v1::TrainerConfig>(&config)) {
    CheckTrainer(*trainer, &checker);
  } else if (const auto* rollout = google::protobuf::DynamicCastToGenerated<v1::RolloutConfig>(&config)) {
    CheckRollout(*rollout, &checker);
  }
  return checker.Take();
}

}  // namespace wsync
