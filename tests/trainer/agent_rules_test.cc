// What a registration may add to the recipe's rules: no more than any sink takes.
#include <gmock/gmock.h>

#include "server/rpc/convert.h"
#include "tests/trainer/agent_testing.h"
#include "tests/trainer/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

class RegisterRulesTest : public AgentTest {
 protected:
  grpc::Status RegisterWith(const std::vector<std::string>& modules) {
    const RegistrationRequest made = TestRequest(*backend_, 1);
    v1::RegisterRequest request;
    request.mutable_header()->set_pid(getpid());
    request.mutable_header()->set_replace(true);
    *request.mutable_header()->add_handles() = ToProto(made.handles[0]);
    *request.mutable_header()->mutable_modules_to_not_convert() = {modules.begin(), modules.end()};
    *request.add_tensors()->mutable_tensor() = ToProto(made.tensors[0]);
    grpc::ClientContext context;
    v1::RegisterReply reply;
    auto stream = trainer_->Register(&context, &reply);
    stream->Write(request);
    stream->WritesDone();
    return stream->Finish();
  }
};

TEST_F(RegisterRulesTest, ListsAndEntriesThatNoSinkWouldTakeAreRefusedWithTheirSize) {
  StartAgent();
  const struct {
    std::vector<std::string> modules;
    const char* why;
  } kCases[] = {
      {std::vector<std::string>(100'001, "a.b"), "100001 entries in modules_to_not_convert, at most 100000"},
      {{std::string(1025, 'x')}, "has 1025 bytes, at most 1024"},
      {{""}, "an empty entry"},
      {{"re:(?!gate)"}, "'re:(?!gate)' cannot be used"},
      {std::vector<std::string>(3000, std::string(1000, 'x')), "at most 2097152 can be sent to sinks"},
  };
  for (const auto& c : kCases) {
    const grpc::Status status = RegisterWith(c.modules);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.why;
    EXPECT_THAT(status.error_message(), HasSubstr(c.why));
  }
  EXPECT_TRUE(RegisterWith({"lm_head", "model.layers.0.mlp.gate", "re:.*gate", "model.layers.*.self_attn"}).ok());
}

TEST_F(RegisterRulesTest, WhatTheConfigurationAndTheRegistrationNameTogetherIsBounded) {
  v1::TrainerConfig config = TestConfig();
  for (int i = 0; i < 60'000; ++i) config.mutable_recipe()->add_modules_to_not_convert(absl::StrCat("a.", i));
  StartAgent(config);
  const grpc::Status status = RegisterWith(std::vector<std::string>(50'000, "b"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("110000 entries"));
  EXPECT_TRUE(RegisterWith(std::vector<std::string>(40'000, "b")).ok());
}

TEST_F(RegisterRulesTest, TheLongestListsThatAreTakenReachASink) {
  StartAgent();
  ASSERT_TRUE(RegisterWith(std::vector<std::string>(2000, std::string(1000, 'x'))).ok());
  auto member = NewMember();
  EXPECT_EQ(member->JoinAndGetReady("a").rules().modules_to_not_convert_size(), 2000);
}

}  // namespace
}  // namespace wsync
