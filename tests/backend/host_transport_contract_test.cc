#include "tests/backend/contract/transport_contract.h"
#include "tests/backend/host_agent.h"

namespace wsync::contract {

INSTANTIATE_TEST_SUITE_P(Host, TransportContract, testing::Values(host::HostParam()), ParamName);

}  // namespace wsync::contract
