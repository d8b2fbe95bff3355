// Loads a configuration from texts instead of the process's surroundings.
#ifndef WSYNC_TESTS_RPC_CONFIG_LOADING_H_
#define WSYNC_TESTS_RPC_CONFIG_LOADING_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "server/rpc/config.h"
#include "tests/rpc/temp_dir.h"
#include "wsync/v1/config.pb.h"

namespace wsync {

struct Given {
  std::string yaml;  // empty: no file
  std::map<std::string, std::string> environment;
  std::vector<std::pair<std::string, std::string>> flags;
};

inline absl::StatusOr<std::vector<ConfigValue>> Load(const Given& given, google::protobuf::Message* message) {
  const TempDir dir;
  ConfigInputs inputs{.environment = given.environment, .flags = given.flags};
  if (!given.yaml.empty()) inputs.file = dir.Write("c.yaml", given.yaml);
  auto values = LoadConfig(inputs, message);
  // The directory's random name would make messages unpredictable.
  const auto shorten = [&dir](std::string text) {
    for (size_t at = 0; (at = text.find(dir.path() + "/")) != std::string::npos;) text.erase(at, dir.path().size() + 1);
    return text;
  };
  if (!values.ok()) return absl::Status(values.status().code(), shorten(std::string(values.status().message())));
  for (ConfigValue& value : *values) value.origin = shorten(value.origin);
  return values;
}

// The problems of loading, "" when there are none.
template <typename Config>
std::string ProblemsOf(const Given& given) {
  Config config;
  const auto values = Load(given, &config);
  return values.ok() ? "" : std::string(values.status().message());
}
inline std::string TrainerProblems(const std::string& yaml) { return ProblemsOf<v1::TrainerConfig>({.yaml = yaml}); }
inline std::string RolloutProblems(const std::string& yaml) { return ProblemsOf<v1::RolloutConfig>({.yaml = yaml}); }

}  // namespace wsync

#endif  // WSYNC_TESTS_RPC_CONFIG_LOADING_H_
