// The client process of cuda_stream_event_test: owns one event of GPU 0, recorded behind work that waits for a signal.
//   SIGUSR1   ends that work, and the event comes
//   SIGUSR2   afterwards: records the event again behind such work, and prints "again"
// Prints "HANDLE(hex) UUID ready" when the event may be opened, and then stays until it is killed. What goes wrong goes
// to stderr, exit code 1.
#include <cuda_runtime_api.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <iostream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "server/backend/cuda/stream.h"

namespace wsync::cuda {
namespace {

std::atomic<bool> signalled = false, again = false;

// Keeps its stream busy, as a kernel would; no call to CUDA may be made in it.
void AwaitSignal(void*) {
  while (!signalled) usleep(1000);
  signalled = false;
}

absl::Status Run() {
  const auto device = Device::Open(0);
  if (!device.ok()) return device.status();
  const auto stream = Stream::Create(*device);
  if (!stream.ok()) return stream.status();
  cudaEvent_t event = nullptr;
  cudaIpcEventHandle_t handle = {};
  const auto check = [&device](cudaError_t error, const char* call) {
    return (*device)->Check(error, call, "a test's event");
  };
  const auto record = [&] {
    absl::Status status = check(cudaLaunchHostFunc((*stream)->get(), AwaitSignal, nullptr), "cudaLaunchHostFunc");
    status.Update(check(cudaEventRecord(event, (*stream)->get()), "cudaEventRecord"));
    return status;
  };
  absl::Status status =
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess), "cudaEventCreate");
  status.Update(check(cudaIpcGetEventHandle(&handle, event), "cudaIpcGetEventHandle"));
  if (status.ok()) status = record();
  if (!status.ok()) return status;
  std::cout << absl::BytesToHexString(std::string(handle.reserved, sizeof(handle.reserved))) << " " << (*device)->uuid()
            << " ready" << std::endl;
  while (true) {
    while (!again) usleep(1000);
    again = false;
    status = record();
    if (!status.ok()) return status;
    std::cout << "again" << std::endl;
  }
}

}  // namespace
}  // namespace wsync::cuda

int main() {
  signal(SIGUSR1, [](int) { wsync::cuda::signalled = true; });
  signal(SIGUSR2, [](int) { wsync::cuda::again = true; });
  const absl::Status status = wsync::cuda::Run();
  std::cerr << "cuda_event_peer: " << status << std::endl;
  return 1;
}
