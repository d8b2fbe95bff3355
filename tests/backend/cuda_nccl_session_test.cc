// How an NCCL session fails and ends, with a libnccl that misbehaves on request. One GPU is enough: no bytes move.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "server/backend/cuda/memory.h"
#include "server/backend/cuda/nccl_session.h"
#include "tests/backend/cuda_agent.h"
#include "tests/backend/fake_nccl.h"

namespace wsync::cuda {
namespace {

using contract::FailsWith;
using contract::HangDeadline;
using contract::WaitFor;

constexpr int64_t kBytes = 1 << 20;

FakeNccl& Fake() {
  static FakeNccl* const fake = [] {
    const std::string path = BesideThisTest("libwsync_fake_nccl.so");
    setenv(kNcclLibraryVariable, path.c_str(), 1);
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<decltype(&wsync_fake_nccl)>(dlsym(library, "wsync_fake_nccl"))();
  }();
  return *fake;
}

class NcclSessionTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    for (auto* knob : {&Fake().init_hangs, &Fake().launch_hangs, &Fake().broadcast_stalls, &Fake().abort_hangs}) {
      *knob = false;
    }
    for (auto* count : {&Fake().async_error, &Fake().broadcasts, &Fake().aborts}) *count = 0;
    device_ = *Device::Open(0);
    memory_ = *CudaMemory::Create(device_);
    data_ = *memory_->Allocate(kBytes, "a test");
    spec_.warm_up = data_->data();
    spec_.warm_up_bytes = kBytes;
    Create();
  }
  void Create() {
    const auto nccl = NcclLibrary::Load();
    ASSERT_TRUE(nccl.ok()) << nccl.status();
    session_ = *NcclSession::Create(device_, *nccl, std::make_shared<EventPool>(device_), spec_);
  }
  void TearDown() override {
    Fake().abort_hangs = false;
    if (session_ != nullptr) session_->Close();
    EXPECT_EQ(Fake().calls_after_end, 0);
  }
  void Open() {
    const absl::Status status = session_->Connect(HangDeadline());
    ASSERT_TRUE(status.ok()) << status;
  }
  CompletionPtr Broadcast(const CompletionPtr& after = nullptr) {
    return session_->Broadcast(data_->data(), kBytes, after);
  }
  void Close() {
    session_->Close();
    session_ = nullptr;
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<CudaMemory> memory_;
  std::unique_ptr<Buffer> data_;
  NcclSessionSpec spec_{.rank = 1, .world = 2, .end_limit = absl::Milliseconds(500)};
  std::shared_ptr<NcclSession> session_;
};

TEST_F(NcclSessionTest, ServesAnyNumberOfBroadcastsAndIsAbortedWhenIdle) {
  Open();
  for (int i = 0; i < 2000; ++i) {
    const CompletionPtr done = Broadcast();
    if (i % 100 == 0) {
      ASSERT_TRUE(WaitFor(done).ok());
    }
  }
  ASSERT_TRUE(WaitFor(Broadcast()).ok());
  EXPECT_EQ(session_->moved_bytes(), 2001 * kBytes);
  EXPECT_EQ(Fake().broadcasts, 2002);  // with the one that warms up
  Close();
  EXPECT_EQ(Fake().aborts, 1);  // an idle communicator, too: other ends meet the peers, who may be gone
  EXPECT_TRUE(device_->health().ok());
}

TEST_F(NcclSessionTest, LeavesTheThreadBlocksToNcclUnlessItMayTakeMany) {
  Open();
  EXPECT_EQ(Fake().min_ctas, NCCL_CONFIG_UNDEF_INT);
  EXPECT_EQ(Fake().max_ctas, NCCL_CONFIG_UNDEF_INT);
  spec_.wide = true;
  for (const int max_ctas : {0, 5}) {
    Close();
    spec_.max_ctas = max_ctas;
    Create();
    Open();
    EXPECT_EQ(Fake().min_ctas, max_ctas == 0 ? 64 : max_ctas);
    EXPECT_EQ(Fake().max_ctas, Fake().min_ctas);
  }
}

TEST_F(NcclSessionTest, CountsTheBytesOfWhatSomebodySawEnd) {
  Open();
  (void)Broadcast();
  (void)Broadcast();
  ASSERT_TRUE(WaitFor(Broadcast()).ok());  // what was started before it in the stream came before it
  EXPECT_EQ(session_->moved_bytes(), 3 * kBytes);
  Fake().broadcast_stalls = true;
  const CompletionPtr stalled = Broadcast();
  EXPECT_EQ(session_->moved_bytes(), 3 * kBytes);
}

TEST_F(NcclSessionTest, AConnectThatNeverEndsIsAbortedAtItsDeadline) {
  Fake().init_hangs = true;
  EXPECT_THAT(session_->Connect(MonotonicNow() + absl::Milliseconds(100)),
              FailsWith(absl::StatusCode::kDeadlineExceeded, "rank 1 of 2"));
  Close();
  EXPECT_EQ(Fake().aborts, 1);
  EXPECT_TRUE(device_->health().ok());
}

TEST_F(NcclSessionTest, AFirstBroadcastThatNeverEndsFailsTheConnect) {
  Fake().broadcast_stalls = true;
  EXPECT_THAT(session_->Connect(MonotonicNow() + absl::Milliseconds(200)),
              FailsWith(absl::StatusCode::kDeadlineExceeded, "first ncclBroadcast"));
}

TEST_F(NcclSessionTest, CancelEndsAConnectThatWaits) {
  Fake().init_hangs = true;
  auto waiting = std::async(std::launch::async, [&] { return session_->Connect(HangDeadline()); });
  session_->Cancel(absl::AbortedError("no more"));
  EXPECT_THAT(waiting.get(), FailsWith(absl::StatusCode::kAborted, "no more"));
}

TEST_F(NcclSessionTest, AStalledBroadcastFailsOnCancelAlthoughTheAbortLetsItsEventCome) {
  Open();
  Fake().broadcast_stalls = true;
  const CompletionPtr stalled = Broadcast();
  const CompletionPtr behind = Broadcast(stalled);
  EXPECT_FALSE(stalled->Poll().has_value());
  session_->Cancel(absl::AbortedError("the round is over"));
  EXPECT_THAT(WaitFor(stalled), FailsWith(absl::StatusCode::kAborted, "the round is over"));
  EXPECT_THAT(WaitFor(behind), FailsWith(absl::StatusCode::kAborted, "the round is over"));
  EXPECT_THAT(WaitFor(Broadcast()), FailsWith(absl::StatusCode::kAborted, "the round is over"));
  EXPECT_EQ(Fake().aborts, 1);
  EXPECT_EQ(session_->moved_bytes(), 0);
}

TEST_F(NcclSessionTest, CancelEndsABroadcastThatNcclDoesNotGetLaunched) {
  Open();
  Fake().launch_hangs = true;
  auto broadcast = std::async(std::launch::async, [&] { return WaitFor(Broadcast()); });
  while (Fake().broadcasts < 2) std::this_thread::yield();
  session_->Cancel(absl::AbortedError("the round is over"));
  EXPECT_THAT(broadcast.get(), FailsWith(absl::StatusCode::kAborted, "the round is over"));
}

TEST_F(NcclSessionTest, AnAsynchronousErrorFailsWhatIsPendingWithItsText) {
  Open();
  Fake().broadcast_stalls = true;
  const CompletionPtr stalled = Broadcast();
  Fake().async_error = ncclRemoteError;
  EXPECT_THAT(WaitFor(stalled), FailsWith(absl::StatusCode::kUnavailable, "an error of the fake's"));
}

TEST_F(NcclSessionTest, AFailedPredecessorFailsTheBroadcastAndTheSession) {
  Open();
  EXPECT_THAT(WaitFor(Broadcast(CudaCompletion::Failed(absl::InvalidArgumentError("a NaN")))),
              FailsWith(absl::StatusCode::kInvalidArgument, "a NaN"));
  EXPECT_THAT(WaitFor(Broadcast()), FailsWith(absl::StatusCode::kInvalidArgument, "a NaN"));
}

TEST_F(NcclSessionTest, AnAbortThatHangsIsLeftBehindAndTheDeviceIsBroken) {
  Open();
  Fake().broadcast_stalls = true;
  Fake().abort_hangs = true;
  const CompletionPtr stalled = Broadcast();
  const absl::Time begin = MonotonicNow();
  session_->Cancel(absl::AbortedError("the round is over"));
  EXPECT_THAT(WaitFor(stalled), FailsWith(absl::StatusCode::kAborted, "the round is over"));
  Close();
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(5));
  EXPECT_THAT(device_->health(), FailsWith(absl::StatusCode::kInternal, "restart the agent"));
  Fake().abort_hangs = false;  // else what is left in the stream would hold up the memory's release
}

}  // namespace
}  // namespace wsync::cuda
