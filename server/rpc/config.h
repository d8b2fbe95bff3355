// Daemon configuration: YAML + environment + flags -> one protobuf message, strictly, with the origin of every value.
//
// Everything is driven by the descriptors of proto/wsync/v1/config.proto (defaults, ranges, help): a key added there is
// a YAML key, a flag --a.b, a variable WSYNC_A_B and a line of `config show` with no code. Precedence:
// flag > environment > file > default. Not thread-safe; used at start.
#ifndef WSYNC_SERVER_RPC_CONFIG_H_
#define WSYNC_SERVER_RPC_CONFIG_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace google::protobuf {
class Message;
}

namespace wsync {

// One leaf of the schema, for flags, help and `config show`.
struct ConfigField {
  std::string path;      // "transfer.bucket_bytes"
  std::string flag;      // "--transfer.bucket_bytes"
  std::string variable;  // "WSYNC_TRANSFER_BUCKET_BYTES"
  std::string type;      // "bytes", "duration", "integer", "text", "true/false", "list of text"
  std::string default_text;
  std::string expected;  // "64KiB to 8GiB", "one of: all, quorum", ...
  std::string help;
  bool repeated = false;
};
std::vector<ConfigField> ConfigFields(const google::protobuf::Message& schema);

struct ConfigInputs {
  std::string file;                                               // empty: no file
  std::optional<std::map<std::string, std::string>> environment;  // given by tests; none: the process's own
  std::vector<std::pair<std::string, std::string>> flags;  // path -> text; repeated fields: comma-separated or repeated
};
struct ConfigValue {
  std::string path;
  std::string text;    // as it would be written in YAML: "256MiB", "3s"
  std::string origin;  // "default", "file /etc/wsync/trainer.yaml:12", "environment WSYNC_JOB", "flag --job"
};

// Fills `message` (a TrainerConfig or RolloutConfig) and returns where each value came from, in schema order.
// INVALID_ARGUMENT with one line per problem, all problems at once:
//   trainer.yaml:12: transfer.bucket_bytes: "12 apples" is not a size; expected 64KiB to 8GiB, such as 256MiB
//   trainer.yaml:9: unknown key "transfr"; did you mean "transfer"?
//   environment WSYNC_TRANSFER_THREAD: no such key; did you mean WSYNC_TRANSFER_THREADS?
// A variable is taken for a slip when it is within two letters of a key of either daemon: what else begins with WSYNC_
// is somebody else's (Kubernetes makes WSYNC_TRAINER_PORT of a service's name).
absl::StatusOr<std::vector<ConfigValue>> LoadConfig(const ConfigInputs& inputs, google::protobuf::Message* message);

// The lines above about this process's environment alone: for commands that read some of these variables and no file.
std::vector<std::string> MistypedVariables();

// What keys say about each other (rank < replica_size, tls.* all or none, ...), one line per problem. LoadConfig does
// it, too, with origins; this is for messages that were filled by hand.
absl::Status CheckConfig(const google::protobuf::Message& config);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CONFIG_H_
