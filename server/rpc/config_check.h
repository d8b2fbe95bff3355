// What keys say about each other, which ranges of single keys cannot express. Internal to config*.cc.
#ifndef WSYNC_SERVER_RPC_CONFIG_CHECK_H_
#define WSYNC_SERVER_RPC_CONFIG_CHECK_H_

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace wsync {

struct CrossProblem {
  std::vector<std::string> paths;  // the keys that disagree
  std::string text;                // names them and their values
};
// REQUIRES: `config` is a TrainerConfig or a RolloutConfig; others have nothing to check.
std::vector<CrossProblem> FindCrossProblems(const google::protobuf::Message& config);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CONFIG_CHECK_H_
