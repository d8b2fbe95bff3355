// Events of another process: the agent's work waits for that process's stream, which waits for the agent's, and nobody
// hangs when the other one dies.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/time/clock.h"
#include "server/backend/cuda/memory.h"
#include "server/backend/cuda/stream_event.h"
#include "tests/backend/contract/loader_contract.h"
#include "tests/backend/contract/quantizer_contract.h"
#include "tests/backend/cuda_agent.h"
#include "tests/rpc/child_process.h"

namespace wsync::contract {
// Their headers are here for what they are made of.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(QuantizerContract);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LoaderContract);
}  // namespace wsync::contract

namespace wsync::cuda {
namespace {

using contract::Bytes;
using contract::EncodedModel;
using contract::FailsWith;
using contract::HangDeadline;

const absl::Status kWhy = absl::DeadlineExceededError("the client did not get there");

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
  // Work of this process in a stream that waits for `after`.
  CompletionPtr WorkAfter(const CompletionPtr& after) {
    auto before = OrderAfter(*stream_, after);
    EXPECT_TRUE(before.ok()) << before.status();
    return *CudaCompletion::Record(*events_, *stream_, *std::move(before));
  }

  std::unique_ptr<contract::Agent> agent_;
  std::shared_ptr<Device> device_;
  std::shared_ptr<EventPool> events_;
  std::unique_ptr<Stream> stream_;
};

TEST_F(CudaStreamEventTest, WorkWaitsForTheOtherProcesssStreamWithoutAnyHostWaiting) {
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr recorded = event->Recorded();
  const CompletionPtr work = WorkAfter(recorded);
  Settle();
  EXPECT_EQ(recorded->Poll(), std::nullopt);
  EXPECT_EQ(work->Poll(), std::nullopt);
  peer.Signal(SIGUSR1);
  EXPECT_EQ(work->Wait(HangDeadline()), absl::OkStatus());
  EXPECT_EQ(recorded->Poll(), absl::OkStatus());
  EXPECT_EQ(WorkAfter(event->Recorded())->Wait(HangDeadline()), absl::OkStatus()) << "what came needs no waiting";
}

TEST_F(CudaStreamEventTest, TheOtherProcesssStreamWaitsForWhatWasMarked) {
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "wait"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  std::atomic<bool> go = false;
  const auto busy = [](void* flag) {
    while (!*static_cast<std::atomic<bool>*>(flag)) std::this_thread::yield();
  };
  ASSERT_EQ(cudaLaunchHostFunc(stream_->get(), busy, &go), cudaSuccess);
  const CompletionPtr work = WorkAfter(nullptr);
  EXPECT_EQ(event->Mark(absl::MakeConstSpan(&work, 1)), absl::OkStatus());
  peer.Signal(SIGUSR1);
  ASSERT_TRUE(peer.WaitForOutput("waiting")) << peer.output();
  Settle();
  EXPECT_EQ(work->Poll(), std::nullopt);
  EXPECT_EQ(peer.output().find("passed"), std::string::npos);
  go = true;
  EXPECT_TRUE(peer.WaitForOutput("passed")) << peer.output();
}

TEST_F(CudaStreamEventTest, WhatIsGivenUpFailsAndTheStreamGoesOnThoughTheClientIsStuck) {
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr work = WorkAfter(event->Recorded());
  Settle();
  event->GiveUp(kWhy);
  EXPECT_EQ(work->Wait(HangDeadline()), kWhy);
  EXPECT_EQ(WorkAfter(nullptr)->Wait(HangDeadline()), absl::OkStatus()) << "the same stream, later";
  EXPECT_TRUE(memory().Allocate(1 << 20, "a test").ok());
  EXPECT_EQ(device_->health(), absl::OkStatus());
}

TEST_F(CudaStreamEventTest, AClientThatIsKilledBeforeItsStreamGotThereLeavesNothingHanging) {
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr work = WorkAfter(event->Recorded());
  peer.Signal(SIGKILL);
  ASSERT_EQ(peer.WaitForExit(), -SIGKILL);
  Settle();
  event->GiveUp(kWhy);
  EXPECT_EQ(work->Wait(HangDeadline()), kWhy);
  EXPECT_EQ(WorkAfter(nullptr)->Wait(HangDeadline()), absl::OkStatus());
  EXPECT_TRUE(memory().Allocate(1 << 20, "a test").ok());
  EXPECT_EQ(device_->health(), absl::OkStatus());
}

TEST_F(CudaStreamEventTest, AnEventOfAProcessThatIsGoneIsNotFound) {
  EventHandle handle;
  {
    ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
    handle = HandleOf(peer);
  }
  EXPECT_THAT(memory().OpenEvent(handle).status(),
              FailsWith(absl::StatusCode::kNotFound, "does the process that exported the event still run"));
  EXPECT_TRUE(memory().Allocate(1, "a test").ok());
}

TEST_F(CudaStreamEventTest, EncodingReadsTheWeightsThatTheClientsStreamLeftAlsoWhereATensorHasOneScale) {
  EncodedModel model({{"a.up.weight", Dtype::kBF16, {1000, 200}}}, {.granularity = Granularity::kTensor});
  contract::QuantizerRig rig(*agent_, model);
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  for (int64_t k = 0; k < model.buckets(); ++k) rig.quantizer->Encode(k, rig.Wire(k), event->Recorded());
  Settle();
  model.Poke(0, 77, 0x7F7F);  // the largest BF16: the scale and every code change
  rig.Upload();
  peer.Signal(SIGUSR1);
  ASSERT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
  std::vector<uint64_t> expected;
  EXPECT_EQ(rig.Image(), model.EncodeImage(&expected));
}

TEST_F(CudaStreamEventTest, AnEncodeWhoseClientIsGivenUpFailsWithTheReasonAndTheNextOneIsRight) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {2000, 300}}}, {});
  contract::QuantizerRig rig(*agent_, model);
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  for (int64_t k = 0; k < model.buckets(); ++k) rig.quantizer->Encode(k, rig.Wire(k), event->Recorded());
  EXPECT_TRUE(absl::IsDeadlineExceeded(rig.quantizer->Finish(MonotonicNow() + absl::Milliseconds(50)).status()));
  event->GiveUp(kWhy);
  EXPECT_EQ(rig.quantizer->Finish(HangDeadline()).status(), kWhy);
  rig.EncodeAll();
  std::vector<uint64_t> expected;
  ASSERT_TRUE(rig.quantizer->Finish(HangDeadline()).ok());
  EXPECT_EQ(rig.Image(), model.EncodeImage(&expected));
}

// One destination for the whole of a tensor that is moved as it is.
class OrderedCopyTest : public CudaStreamEventTest {
 protected:
  void SetUp() override {
    CudaStreamEventTest::SetUp();
    if (IsSkipped()) return;
    const Tensor& tensor = model_.plan()->catalog().tensors()[0];
    const int64_t bytes = ViewOf(tensor).rows * ViewOf(tensor).cols * DtypeBytes(tensor.dtype);
    live_ = *memory().Allocate(bytes, "live weights");
    Destination whole{.output = tensor.name, .dtype = tensor.dtype, .shape = tensor.shape};
    whole.row_end = ViewOf(tensor).rows;
    whole.col_end = ViewOf(tensor).cols;
    whole.row_pitch_bytes = ViewOf(tensor).cols * DtypeBytes(tensor.dtype);
    auto table = BuildScatterTable(*model_.plan(), {whole}, {bytes}, false);
    ASSERT_TRUE(table.ok()) << table.status();
    rig_ = std::make_unique<contract::LoaderRig>(*agent_, model_, *std::move(table),
                                                 std::vector<std::byte*>{live_->data()});
  }
  Bytes Live() { return agent_->FromDevice(live_->data(), live_->bytes()); }

  const EncodedModel model_{{{"a.up.weight", Dtype::kBF16, {500, 300}}}, {.fp8 = false}};
  std::unique_ptr<Buffer> live_;
  std::unique_ptr<contract::LoaderRig> rig_;
};

TEST_F(OrderedCopyTest, LiveMemoryIsWrittenWhenTheClientsStreamHasPassed) {
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr copied = rig_->loader->ApplyAll(rig_->device->data(), event->Recorded());
  Settle();
  EXPECT_EQ(Live(), Bytes(live_->bytes()));
  peer.Signal(SIGUSR1);
  EXPECT_EQ(copied->Wait(HangDeadline()), absl::OkStatus());
  EXPECT_TRUE(rig_->loader->Finish(HangDeadline()).ok());
  EXPECT_TRUE(rig_->loader->wrote());
  EXPECT_NE(Live(), Bytes(live_->bytes()));
}

TEST_F(OrderedCopyTest, LiveMemoryIsLeftAloneWhenTheClientIsGivenUpAndTheLoaderSaysSo) {
  ChildProcess peer({BesideThisTest("cuda_event_peer"), "record"});
  const auto event = Open(peer);
  ASSERT_NE(event, nullptr);
  const CompletionPtr copied = rig_->loader->ApplyAll(rig_->device->data(), event->Recorded());
  Settle();
  event->GiveUp(kWhy);
  EXPECT_EQ(copied->Wait(HangDeadline()), kWhy);
  EXPECT_EQ(rig_->loader->Finish(HangDeadline()).status(), kWhy);
  EXPECT_FALSE(rig_->loader->wrote());
  EXPECT_EQ(Live(), Bytes(live_->bytes()));
  EXPECT_EQ(rig_->loader->ApplyAll(rig_->device->data(), nullptr)->Wait(HangDeadline()), absl::OkStatus());
  EXPECT_TRUE(rig_->loader->Finish(HangDeadline()).ok());
  EXPECT_TRUE(rig_->loader->wrote());
  EXPECT_NE(Live(), Bytes(live_->bytes()));
}

}  // namespace
}  // namespace wsync::cuda
