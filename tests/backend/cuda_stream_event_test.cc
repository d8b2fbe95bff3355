// Events of another process: they come when that process's stream got there and not before, the agent goes on working
// meanwhile, and nobody hangs when the other one is stuck or dies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "server/backend/cuda/memory.h"
#include "server/backend/cuda/stream_event.h"
#include "tests/backend/cuda_agent.h"
#include "tests/rpc/child_process.h"

namespace wsync::cuda {
namespace {

using contract::FailsWith;
using contract::HangDeadline;

constexpr absl::Duration kHang = absl::Seconds(20);

// Long enough for a GPU to do anything that it is free to do.
void Settle() { absl::SleepFor(absl::Milliseconds(100)); }

class CudaStreamEventTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    auto agent = CudaParam(1).make(0);
    agent_ = std::move(agent);
    device_ = *Device::Open(0);
    events_ = std::make_shared<EventPool>(device_);
    stream_ = *Stream::Create(device_);
  }
  Memory& memory() { return agent_->backend().memory(); }

  EventHandle HandleOf(ChildProcess& peer) {
    EXPECT_TRUE(peer.WaitForOutput(" ready")) << peer.output();
    const std::string& text = peer.output();
    return {absl::HexStringToBytes(text.substr(0, 128)), text.substr(129, text.find(" ready") - 129)};
  }
  std::unique_ptr<StreamEvent> Open(ChildProcess& peer) {
    auto opened = memory().OpenEvent(HandleOf(peer));
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }
  // This process's own work in its own stream.
  CompletionPtr Work() { return *CudaCompletion::Record(*events_, *stream_, nullptr); }
  // That another process's event has not come concerns nothing else here.
  void ExpectTheAgentWorks() {
    EXPECT_EQ(Work()->Wait(HangDeadline()), absl::OkStatus());
    EXPECT_TRUE(memory().Allocate(1 << 20, "a test").ok());
    EXPECT_EQ(device_->health(), absl::OkStatus());
  }

  std::unique_ptr<contract::Agent> agent_;
  std::shared_ptr<Device> device_;
  std::shared_ptr<EventPool> events_;
  std::unique_ptr<Stream> stream_;
};

TEST_F(CudaStreamEventTest, ItComesWhenTheOtherProcesssStreamGotThereAndNotBefore) {
  ChildProcess peer({BesideThisTest("cuda_event_peer")});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr recorded = event->Recorded();
  Settle();
  EXPECT_EQ(recorded->Poll(), std::nullopt);
  ExpectTheAgentWorks();
  peer.Signal(SIGUSR1);
  EXPECT_EQ(AwaitRecorded(*event, kHang, nullptr, "late"), absl::OkStatus());
  EXPECT_EQ(recorded->Poll(), absl::OkStatus());
  EXPECT_EQ(event->Recorded()->Poll(), absl::OkStatus()) << "what came needs no waiting";
}

TEST_F(CudaStreamEventTest, WhatItsOwnerRecordsAgainHasToComeAgain) {
  ChildProcess peer({BesideThisTest("cuda_event_peer")});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  peer.Signal(SIGUSR1);
  EXPECT_EQ(AwaitRecorded(*event, kHang, nullptr, "late"), absl::OkStatus());
  peer.Signal(SIGUSR2);
  ASSERT_TRUE(peer.WaitForOutput("again")) << peer.output();
  Settle();
  EXPECT_EQ(event->Recorded()->Poll(), std::nullopt);
  peer.Signal(SIGUSR1);
  EXPECT_EQ(AwaitRecorded(*event, kHang, nullptr, "late"), absl::OkStatus());
}

TEST_F(CudaStreamEventTest, AClientThatIsStuckIsWaitedForUntilTheLimit) {
  ChildProcess peer({BesideThisTest("cuda_event_peer")});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  EXPECT_EQ(AwaitRecorded(*event, absl::Milliseconds(50), nullptr, "late"), absl::DeadlineExceededError("late"));
  const absl::Status why = absl::AbortedError("a member was lost");
  EXPECT_EQ(AwaitRecorded(
                *event, kHang, [&why] { return why; }, "late"),
            why);
  ExpectTheAgentWorks();
}

TEST_F(CudaStreamEventTest, AClientThatIsKilledBeforeItsStreamGotThereLeavesNothingHanging) {
  ChildProcess peer({BesideThisTest("cuda_event_peer")});
  auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr recorded = event->Recorded();
  peer.Signal(SIGKILL);
  ASSERT_EQ(peer.WaitForExit(), -SIGKILL);
  Settle();
  EXPECT_NE(recorded->Poll(), absl::OkStatus()) << "what was never reached must not look reached";
  ExpectTheAgentWorks();
  event = nullptr;  // closed, though it never came
  ExpectTheAgentWorks();
}

TEST_F(CudaStreamEventTest, AnEventOfAProcessThatIsGoneIsNotFoundOrStillAnEventAndHurtsNothing) {
  EventHandle handle;
  {
    ChildProcess peer({BesideThisTest("cuda_event_peer")});
    handle = HandleOf(peer);
  }
  auto opened = memory().OpenEvent(handle);  // drivers differ: some keep what a dead process exported
  if (!opened.ok()) {
    EXPECT_THAT(opened.status(),
                FailsWith(absl::StatusCode::kNotFound, "does the process that exported the event still run"));
  } else {
    (void)(*opened)->Recorded()->Poll();
    opened->reset();
  }
  ExpectTheAgentWorks();
}

}  // namespace
}  // namespace wsync::cuda
