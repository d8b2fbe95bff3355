// What a join is refused for before the coordinator looks at it, and what becomes of what else a member says.
#include "server/trainer/member_messages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
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
  EXPECT_FALSE(JoinedFrom(1, join_, rules_, "").info.wide);
  join_.set_idle_receiver(true);
  EXPECT_TRUE(JoinedFrom(1, join_, rules_, "").info.wide);
  join_.set_host("elsewhere");
  EXPECT_FALSE(JoinedFrom(1, join_, rules_, "").info.wide);
}

TEST_F(CheckJoinTest, TheTrainerAgentsOwnGpuIsRefused) {
  join_.set_device_id(kGpu);
  EXPECT_THAT(Refusal(), AllOf(HasSubstr(kGpu), HasSubstr("transfer.device")));
}

// Titles, cleared screens and forged lines reached the terminals of those who asked for the status.
TEST_F(CheckJoinTest, NamesThatSteerATerminalOrForgeALineAreRefusedAndShownEscaped) {
  for (auto name :
       {&v1::Join::mutable_name, &v1::Join::mutable_replica, &v1::Join::mutable_host, &v1::Join::mutable_software}) {
    join_ = TestMember::JoinOf("a");
    *(join_.*name)() = "x\033]0;gotcha\007\n12:00:00 version 9 committed";
    EXPECT_THAT(Refusal(), AllOf(HasSubstr("\\x1b]0;gotcha\\x07\\n12:00:00"), ::testing::Not(HasSubstr("\033"))));
  }
}

TEST_F(CheckJoinTest, NamesInAnyScriptAreWelcomeUpTo256Bytes) {
  join_.set_name("Größe-零号");
  EXPECT_EQ(Refusal(), "");
  join_.set_name(std::string(256, 'x'));
  EXPECT_EQ(Refusal(), "");
  join_.set_name(std::string(257, 'x'));
  EXPECT_THAT(Refusal(), HasSubstr("257"));
}

TEST_F(CheckJoinTest, RanksAndReplicaSizesThatCannotBeAreRefused) {
  const int32_t most = std::numeric_limits<int32_t>::max();
  for (const auto& [rank, size] : {std::pair(-1, 1), {1, 1}, {0, 0}, {0, -1}, {0, most}, {most, most}, {-most, 4}}) {
    join_.set_rank(rank);
    join_.set_replica_size(size);
    EXPECT_THAT(Refusal(), HasSubstr("ranks go from 0")) << rank << " of " << size;
  }
}

TEST_F(CheckJoinTest, AnIncarnationIsSixteenBytesOrNone) {
  join_.set_incarnation(std::string(16, '\x01'));
  EXPECT_EQ(Refusal(), "");
  EXPECT_EQ(JoinedFrom(1, join_, rules_, "").info.incarnation, (Hash128{0x0101010101010101, 0x0101010101010101}));
  join_.set_incarnation("");
  EXPECT_EQ(Refusal(), "");
  EXPECT_TRUE(JoinedFrom(1, join_, rules_, "").info.incarnation.IsZero());
  join_.set_incarnation(std::string(1000, 'x'));
  EXPECT_THAT(Refusal(), HasSubstr("1000 bytes"));
}

TEST_F(CheckJoinTest, APeerIsItsAddressWithoutThePortOfOneConnection) {
  EXPECT_EQ(JoinedFrom(1, join_, rules_, "ipv4:10.0.0.7:51234").info.peer, "ipv4:10.0.0.7");
  EXPECT_EQ(JoinedFrom(1, join_, rules_, "ipv6:%5B::1%5D:4711").info.peer, "ipv6:%5B::1%5D");
}

TEST_F(CheckJoinTest, AGroupIsNoLargerThanAJobMayBe) {
  join_.set_group(std::numeric_limits<int32_t>::max());
  EXPECT_EQ(JoinedFrom(1, join_, rules_, "").info.group, 4096);
  join_.set_group(-5);
  EXPECT_EQ(JoinedFrom(1, join_, rules_, "").info.group, 0);
}

// ---- after the join

template <typename T>
T EventOf(const v1::MemberMessage& message) {
  const std::optional<Event> event = EventFrom(1, message);
  return event.has_value() && std::holds_alternative<T>(*event) ? std::get<T>(*event) : T{};
}

TEST(EventFrom, ExplanationsAreBoundedEscapedAndCannotPassForLinesOfOurs) {
  v1::MemberMessage message;
  message.mutable_ready()->set_reason("bad\033[2J\nversion 9 committed");
  message.mutable_ready()->set_engine("vllm\r\n" + std::string(100'000, 'x'));
  const auto ready = EventOf<event::ReadyChanged>(message);
  EXPECT_EQ(ready.reason, "bad\\x1b[2J\n  version 9 committed");
  EXPECT_THAT(ready.engine, HasSubstr("vllm\\r\\n"));
  EXPECT_LT(ready.engine.size(), 300u);
  message.mutable_failed()->set_error(std::string(100'000, 'x'));
  EXPECT_LT(EventOf<event::Failed>(message).status.message().size(), 2100u);
  message.mutable_leave()->set_reason(std::string(100'000, '\n'));
  EXPECT_LT(EventOf<event::Left>(message).reason.size(), 2100u);
}

TEST(EventFrom, CodesThatAreNoneAreUnknownErrorsAndNeverOk) {
  for (const int32_t code : {0, -1, 17, 99, std::numeric_limits<int32_t>::max()}) {
    v1::MemberMessage message;
    message.mutable_failed()->set_code(code);
    EXPECT_EQ(EventOf<event::Failed>(message).status.code(), absl::StatusCode::kUnknown) << code;
  }
}

TEST(EventFrom, TimingsThatCannotBeAreNone) {
  for (const double ms : {std::nan(""), -1.0, 1e300, HUGE_VAL}) {
    v1::MemberMessage message;
    message.mutable_staged()->mutable_timings()->set_transfer_ms(ms);
    EXPECT_EQ(EventOf<event::Staged>(message).timings.transfer, absl::ZeroDuration()) << ms;
    message.mutable_applied()->mutable_timings()->set_apply_ms(ms);
    EXPECT_EQ(EventOf<event::Applied>(message).timings.apply, absl::ZeroDuration()) << ms;
  }
}

TEST(EventFrom, ABucketIsANumberOrNone) {
  v1::MemberMessage message;
  message.mutable_heartbeat()->set_bucket(std::numeric_limits<int64_t>::min());
  message.mutable_heartbeat()->set_phase(static_cast<v1::MemberPhase>(77));
  const auto heartbeat = EventOf<event::HeartbeatSeen>(message);
  EXPECT_EQ(heartbeat.bucket, -1);
  EXPECT_EQ(heartbeat.phase, MemberPhase::kIdle);
}

}  // namespace
}  // namespace wsync
