// The CUDA backend under contract: agent i on GPU i, modulo their number; no server, NCCL finds its own way.
#ifndef WSYNC_TESTS_BACKEND_CUDA_AGENT_H_
#define WSYNC_TESTS_BACKEND_CUDA_AGENT_H_

#include <string>

#include "tests/backend/contract/agent.h"

namespace wsync::cuda {

// Number of GPUs; with none, why.
int GpuCount(std::string* why);
// Unavailable where there are fewer than `gpus`.
contract::BackendParam CudaParam(int gpus);

// The path of a program or library that is built for a test, next to it, wherever the two were copied to.
std::string BesideThisTest(const std::string& name);

// Skips, visibly, where there is no GPU.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override;
};

}  // namespace wsync::cuda

#endif  // WSYNC_TESTS_BACKEND_CUDA_AGENT_H_
