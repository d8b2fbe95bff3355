// What the contract suite needs to know of a backend: how to make one, and how to reach its memory from the test.
//
// To put a new backend under contract: implement Agent, and instantiate each suite with a factory
// (see ../host_agent.h and ../host_*_contract_test.cc).
#ifndef WSYNC_TESTS_BACKEND_CONTRACT_AGENT_H_
#define WSYNC_TESTS_BACKEND_CONTRACT_AGENT_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/backend.h"
#include "server/core/clock.h"

namespace wsync::contract {

using Bytes = std::vector<std::byte>;

// One agent's end: a backend, and the server that its data plane needs, if any.
class Agent {
 public:
  virtual ~Agent() = default;
  virtual Backend& backend() = 0;
  virtual std::string root_address() = 0;  // where its peers find it when it is rank 0
  virtual void ToDevice(std::byte* device, const Bytes& from) = 0;
  virtual Bytes FromDevice(const std::byte* device, int64_t bytes) = 0;
};

struct BackendParam {
  std::string name;
  std::function<std::unique_ptr<Agent>()> make;
};
inline std::string ParamName(const testing::TestParamInfo<BackendParam>& info) { return info.param.name; }

// Long enough for a loaded machine under a sanitizer: only a hang reaches it.
inline absl::Time HangDeadline() { return MonotonicNow() + absl::Seconds(60); }

class BackendContract : public testing::TestWithParam<BackendParam> {
 protected:
  std::unique_ptr<Agent> MakeAgent() { return GetParam().make(); }

  static std::unique_ptr<Buffer> Allocate(Agent& agent, int64_t bytes) {
    auto buffer = agent.backend().memory().Allocate(bytes, "a test");
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
};

// Null is "done already, OK".
inline absl::Status WaitFor(const CompletionPtr& completion) {
  return completion == nullptr ? absl::OkStatus() : completion->Wait(HangDeadline());
}

MATCHER_P2(FailsWith, code, text, "") {
  *result_listener << arg;
  return arg.code() == code && std::string(arg.message()).find(text) != std::string::npos;
}

}  // namespace wsync::contract

#endif  // WSYNC_TESTS_BACKEND_CONTRACT_AGENT_H_
