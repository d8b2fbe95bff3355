#include "tests/backend/contract/transport_contract.h"
#include "tests/backend/cuda_agent.h"

namespace wsync::contract {

INSTANTIATE_TEST_SUITE_P(Cuda, TransportContract, testing::Values(cuda::CudaParam(/*gpus=*/2)), ParamName);

}  // namespace wsync::contract
