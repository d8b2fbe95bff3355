#include "tests/backend/contract/quantizer_contract.h"
#include "tests/backend/cuda_agent.h"

namespace wsync::contract {

INSTANTIATE_TEST_SUITE_P(Cuda, QuantizerContract, testing::Values(cuda::CudaParam(/*gpus=*/1)), ParamName);

}  // namespace wsync::contract
