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

// A backend, and in which of its ways it is right by contract and still not like the others.
struct BackendParam {
  std::string name;
  // The agent of one rank: ranks of a session get numbers that follow one another, where it matters on which device.
  std::function<std::unique_ptr<Agent>(int32_t number)> make;
  std::string unavailable = "";   // why this machine cannot run it; empty: it can
  bool tritons_division = false;  // preset verl with fp32 block scales is the GPU's own, not the host twin's
  // Of the transport:
  int32_t max_world = 5;                    // ranks that one process can hold
  bool sees_lost_ranks = true;              // by itself; else the coordinator does, and cancels
  int64_t stall_bytes = int64_t{64} << 20;  // more than fits on the way to a rank that takes nothing
};
inline std::string ParamName(const testing::TestParamInfo<BackendParam>& info) { return info.param.name; }

// Long enough for a loaded machine under a sanitizer: only a hang reaches it.
inline absl::Time HangDeadline() { return MonotonicNow() + absl::Seconds(60); }

class BackendContract : public testing::TestWithParam<BackendParam> {
 protected:
  void SetUp() override {
    if (!GetParam().unavailable.empty()) GTEST_SKIP() << GetParam().unavailable;
  }
  std::unique_ptr<Agent> MakeAgent() { return GetParam().make(0); }

  static std::unique_ptr<Buffer> Allocate(Agent& agent, int64_t bytes) {
    auto buffer = agent.backend().memory().Allocate(bytes, "a test");
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return *std::move(buffer);
  }
};

// With one agent, for what needs no other.
class AgentContract : public BackendContract {
 protected:
  void SetUp() override {
    BackendContract::SetUp();
    if (!IsSkipped()) agent_ = MakeAgent();
  }
  std::unique_ptr<Agent> agent_;
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
