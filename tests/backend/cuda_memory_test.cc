// What the CUDA backend's memory does beyond the contract: handles between processes.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "server/backend/cuda/memory.h"
#include "tests/backend/cuda_agent.h"
#include "tests/backend/cuda_ipc_pattern.h"
#include "tests/rpc/child_process.h"

namespace wsync::cuda {
namespace {

using contract::FailsWith;

constexpr int64_t kBytes = 3'000'001;  // no multiple of anything

class CudaMemoryTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    device_ = *Device::Open(0);
    memory_ = *CudaMemory::Create(device_);
  }
  absl::Status OpenStatus(const MemoryHandle& handle) { return memory_->Open(handle, Access::kRead).status(); }
  // Starts an exporter; its handle once it has printed it.
  CudaIpcHandle HandleFrom(ChildProcess& peer, int64_t bytes) {
    EXPECT_TRUE(peer.WaitForOutput(" ready")) << peer.output();
    const std::string hex = peer.output().substr(0, 128);
    const size_t end = peer.output().find(" ready");
    return {absl::HexStringToBytes(hex), peer.output().substr(129, end - 129), bytes};
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<CudaMemory> memory_;
};

TEST_F(CudaMemoryTest, AnotherProcessSeesAndChangesWhatIsSharedAndMapsItOnce) {
  MemoryHandle handle;
  const auto buffer = memory_->AllocateShared(kBytes, "a test", &handle);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  WritePattern((*buffer)->data(), kBytes, 7);
  const auto& ipc = std::get<CudaIpcHandle>(handle);
  EXPECT_EQ(ipc.device_uuid, device_->uuid());
  ChildProcess peer({BesideThisTest("cuda_ipc_peer"), "open", absl::BytesToHexString(ipc.handle), ipc.device_uuid,
                     std::to_string(ipc.bytes), "7"});
  EXPECT_EQ(peer.WaitForExit(), 0) << peer.output();
  std::string what;
  EXPECT_TRUE(HoldsPattern((*buffer)->data(), kBytes, 8, &what)) << what;
}

TEST_F(CudaMemoryTest, MemoryOfAnotherProcessIsReadWhileThatHoldsIt) {
  ChildProcess peer({BesideThisTest("cuda_ipc_peer"), "export", std::to_string(kBytes), "3"});
  const CudaIpcHandle handle = HandleFrom(peer, kBytes);
  CudaIpcHandle as_torch_says = handle;
  as_torch_says.device_uuid = absl::AsciiStrToUpper(handle.device_uuid.substr(4));
  const auto opened = memory_->Open(as_torch_says, Access::kRead);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->bytes(), kBytes);
  std::string what;
  EXPECT_TRUE(HoldsPattern((*opened)->data(), kBytes, 3, &what)) << what;
}

TEST_F(CudaMemoryTest, AHandleOfAProcessThatIsGoneIsNotFound) {
  ChildProcess peer({BesideThisTest("cuda_ipc_peer"), "export-and-exit", std::to_string(kBytes), "3"});
  const CudaIpcHandle handle = HandleFrom(peer, kBytes);
  ASSERT_EQ(peer.WaitForExit(), 0) << peer.output();
  EXPECT_THAT(OpenStatus(handle),
              FailsWith(absl::StatusCode::kNotFound, "does the process that exported it still run"));
  // The error is told once: it is not taken for a later call's.
  EXPECT_TRUE(memory_->Allocate(1, "a test").ok());
}

TEST_F(CudaMemoryTest, AHandleOfAnotherGpuIsRefusedNamingBoth) {
  MemoryHandle handle;
  const auto buffer = memory_->AllocateShared(kBytes, "a test", &handle);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  CudaIpcHandle other = std::get<CudaIpcHandle>(handle);
  other.device_uuid = "GPU-00000000-1111-2222-3333-444444444444";
  EXPECT_THAT(OpenStatus(other), FailsWith(absl::StatusCode::kInvalidArgument, other.device_uuid));
  EXPECT_THAT(OpenStatus(other), FailsWith(absl::StatusCode::kInvalidArgument, device_->uuid()));
}

TEST_F(CudaMemoryTest, HandlesThatAreNoneAreRefused) {
  const CudaIpcHandle good{.handle = std::string(64, 'x'), .device_uuid = device_->uuid(), .bytes = 1};
  CudaIpcHandle bad = good;
  bad.handle.pop_back();
  EXPECT_THAT(OpenStatus(bad), FailsWith(absl::StatusCode::kInvalidArgument, "63 bytes"));
  bad = good;
  bad.bytes = 0;
  EXPECT_THAT(OpenStatus(bad), FailsWith(absl::StatusCode::kInvalidArgument, "claims 0 bytes"));
  EXPECT_FALSE(OpenStatus(good).ok());
  EXPECT_THAT(OpenStatus(SharedMemoryHandle{"/wsync", 1}),
              FailsWith(absl::StatusCode::kInvalidArgument, "host backend"));
  EXPECT_TRUE(device_->health().ok());
}

TEST_F(CudaMemoryTest, BuffersThatSeveralThreadsMakeAtOnceHoldWhatEachPutThere) {
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        const std::vector<char> bytes(100'000 + t, static_cast<char>(20 * t + i + 1));
        const auto zeroed = memory_->Allocate(kBytes, "a test");
        const auto buffer = memory_->Upload(bytes.data(), static_cast<int64_t>(bytes.size()), "a test");
        if (!zeroed.ok() || !buffer.ok()) continue;
        std::vector<char> back(bytes.size()), zeros(1000, 1);
        cudaMemcpy(back.data(), (*buffer)->data(), back.size(), cudaMemcpyDeviceToHost);
        cudaMemcpy(zeros.data(), (*zeroed)->data() + kBytes - 1000, zeros.size(), cudaMemcpyDeviceToHost);
        right += back == bytes && zeros == std::vector<char>(1000);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 80);
}

TEST_F(CudaMemoryTest, ARequestBeyondTheGpusMemoryNamesTheGpuAndLeavesNothingBroken) {
  EXPECT_THAT(memory_->Allocate(int64_t{1} << 44, "the ring").status(),
              FailsWith(absl::StatusCode::kResourceExhausted, device_->name()));
  EXPECT_TRUE(memory_->Allocate(1 << 20, "a test").ok());
}

}  // namespace
}  // namespace wsync::cuda
