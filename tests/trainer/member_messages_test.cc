// What a join is refused for before the coordinator looks at it, as far as the data plane is concerned.
#include "server/trainer/member_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/trainer/test_member.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kTransport[] = "nccl 2.28.9; NCCL_ALGO=Ring";
constexpr char kGpu[] = "GPU-8f1c0000";

class CheckJoinTest : public ::testing::Test {
 protected:
  CheckJoinTest() {
    join_.set_transport(kTransport);
    join_.set_device_id("GPU-aaaa0000");
    rules_ = {.job = join_.job(), .backend = join_.backend(), .transport = kTransport, .device_id = kGpu};
  }
  std::string Refusal() { return std::string(CheckJoin(join_, rules_).message()); }

  v1::Join join_ = TestMember::JoinOf("a");
  JoinRules rules_;
};

TEST_F(CheckJoinTest, TheSameSurroundingsAndAnotherGpuAreWelcome) { EXPECT_EQ(Refusal(), ""); }

TEST_F(CheckJoinTest, AnotherNcclLibraryOrEnvironmentIsToldBothAndWhatToChange) {
  for (const char* other : {"nccl 2.28.3; NCCL_ALGO=Ring", "nccl 2.28.9", "nccl 2.28.9; max_ctas 4; NCCL_ALGO=Ring"}) {
    join_.set_transport(other);
    EXPECT_THAT(Refusal(), AllOf(HasSubstr(other), HasSubstr(kTransport), HasSubstr("transfer.nccl_max_ctas")));
  }
}

// Clouds set dozens of variables.
TEST_F(CheckJoinTest, ALongNcclEnvironmentIsComparedAndAnEndlessOneRefused) {
  const std::string dozens = std::string(kTransport) + std::string(8000, 'x');
  join_.set_transport(dozens);
  EXPECT_THAT(Refusal(), HasSubstr("transfer.nccl_max_ctas"));
  rules_.transport = dozens;
  EXPECT_EQ(Refusal(), "");
  join_.set_transport(std::string(100000, 'x'));
  EXPECT_THAT(Refusal(), AllOf(HasSubstr("100000"), HasSubstr("NCCL_*")));
}

TEST_F(CheckJoinTest, OnlyAnIdleReceiverOnTheSourcesHostLetsItsGpuBeTaken) {
  rules_.host = join_.host();
  EXPECT_FALSE(JoinedFrom(1, join_, rules_).info.wide);
  join_.set_idle_receiver(true);
  EXPECT_TRUE(JoinedFrom(1, join_, rules_).info.wide);
  join_.set_host("elsewhere");
  EXPECT_FALSE(JoinedFrom(1, join_, rules_).info.wide);
}

TEST_F(CheckJoinTest, TheTrainerAgentsOwnGpuIsRefused) {
  join_.set_device_id(kGpu);
  EXPECT_THAT(Refusal(), AllOf(HasSubstr(kGpu), HasSubstr("transfer.device")));
}

}  // namespace
}  // namespace wsync
