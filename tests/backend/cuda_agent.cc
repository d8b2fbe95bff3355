#include "tests/backend/cuda_agent.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "server/backend/cuda/backend.h"

namespace wsync::cuda {
namespace {

#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaGetLastError())

// Copies on a stream of its own: the default one, and whatever waits for the whole device, would wait for a broadcast
// that a test holds up on purpose.
class CudaAgent final : public contract::Agent {
 public:
  explicit CudaAgent(int device) : device_(device) {
    auto backend = CudaBackend::Create({.device = device});
    EXPECT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
    EXPECT_CUDA(cudaSetDevice(device_));
    EXPECT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~CudaAgent() override {
    EXPECT_CUDA(cudaSetDevice(device_));
    EXPECT_CUDA(cudaStreamDestroy(stream_));
  }

  Backend& backend() override { return *backend_; }
  std::string root_address() override { return ""; }
  void ToDevice(std::byte* device, const contract::Bytes& from) override {
    Copy(device, from.data(), from.size(), cudaMemcpyHostToDevice);
  }
  contract::Bytes FromDevice(const std::byte* device, int64_t bytes) override {
    contract::Bytes result(static_cast<size_t>(bytes));
    Copy(result.data(), device, result.size(), cudaMemcpyDeviceToHost);
    return result;
  }

 private:
  void Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    EXPECT_CUDA(cudaSetDevice(device_));
    EXPECT_CUDA(cudaMemcpyAsync(to, from, bytes, kind, stream_));
    EXPECT_CUDA(cudaStreamSynchronize(stream_));
  }

  const int device_;
  std::unique_ptr<CudaBackend> backend_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

int GpuCount(std::string* why) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  *why = error == cudaSuccess ? "this machine has none" : cudaGetErrorString(error);
  return error == cudaSuccess ? count : 0;
}

contract::BackendParam CudaParam(int gpus) {
  std::string why;
  const int count = GpuCount(&why);
  contract::BackendParam param{.name = "cuda",
                               .make = [count](int32_t number) { return std::make_unique<CudaAgent>(number % count); }};
  if (count == 0) {
    param.unavailable = "no GPU: " + why;
  } else if (count < gpus) {
    param.unavailable = "needs two GPUs, this machine has one";
  }
  param.tritons_division = true;
  param.max_world = std::min(count, param.max_world);
  param.sees_lost_ranks = false;
  param.stall_bytes = int64_t{1} << 30;  // NCCL's buffers between two GPUs hold up to 4 MiB per channel
  return param;
}

std::string BesideThisTest(const std::string& name) {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path() / name;
}

void GpuTest::SetUp() {
  std::string why;
  if (GpuCount(&why) == 0) GTEST_SKIP() << "no GPU: " << why;
}

}  // namespace wsync::cuda
