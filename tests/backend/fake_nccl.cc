#include "tests/backend/fake_nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <cstring>
#include <thread>

struct ncclComm {
  std::atomic<bool> launching = false;
  std::atomic<bool> aborted = false;
  std::atomic<bool> ended = false;
};

namespace {

using wsync::cuda::FakeNccl;

FakeNccl fake;

void Doze() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

// Communicators are never freed: a call that comes too late is counted, not a crash.
bool IsLate(ncclComm_t comm) {
  if (!comm->ended) return false;
  ++fake.calls_after_end;
  return true;
}

void CUDART_CB StallUntilAborted(void* arg) {
  while (!static_cast<ncclComm*>(arg)->aborted) Doze();
}

}  // namespace

extern "C" {

FakeNccl* wsync_fake_nccl() { return &fake; }

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id->internal, 1, sizeof(id->internal));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int, ncclUniqueId, int, ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;
  if (config->minCTAs != NCCL_CONFIG_UNDEF_INT && config->minCTAs > config->maxCTAs) return ncclInvalidArgument;
  fake.min_ctas = config->minCTAs;
  fake.max_ctas = config->maxCTAs;
  *comm = new ncclComm;
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (IsLate(comm)) return ncclInvalidUsage;
  const bool busy = fake.init_hangs || (comm->launching && fake.launch_hangs);
  *error = busy ? ncclInProgress : static_cast<ncclResult_t>(fake.async_error.load());
  return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void*, void*, size_t, ncclDataType_t, int, ncclComm_t comm, cudaStream_t stream) {
  if (IsLate(comm)) return ncclInvalidUsage;
  ++fake.broadcasts;
  comm->launching = true;
  if (fake.launch_hangs) return ncclInProgress;
  if (fake.broadcast_stalls && cudaLaunchHostFunc(stream, StallUntilAborted, comm) != cudaSuccess) {
    return ncclUnhandledCudaError;
  }
  return ncclInProgress;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (IsLate(comm)) return ncclInvalidUsage;
  comm->ended = true;
  ++fake.aborts;
  while (fake.abort_hangs) Doze();
  comm->aborted = true;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t) { return "an error of the fake's"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }

}  // extern "C"
