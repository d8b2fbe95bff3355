// The client process of cuda_stream_event_test: owns one event of GPU 0, and a stream in which a signal is waited for.
//   cuda_event_peer record   records the event behind a wait for SIGUSR1
//   cuda_event_peer wait     after SIGUSR1, lets its stream wait for the event; prints "passed" when it got past it
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

std::atomic<bool> signalled = false;

// Keeps its stream busy, as a kernel would; no call to CUDA may be made in it.
void AwaitSignal(void*) {
  while (!signalled) usleep(1000);
}

absl::Status Run(const std::string& mode) {
  const auto device = Device::Open(0);
  if (!device.ok()) return device.status();
  const auto stream = Stream::Create(*device);
  if (!stream.ok()) return stream.status();
  cudaEvent_t event = nullptr;
  cudaIpcEventHandle_t handle = {};
  const auto check = [&device](cudaError_t error, const char* call) {
    return (*device)->Check(error, call, "a test's event");
  };
  absl::Status status =
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventInterprocess), "cudaEventCreate");
  status.Update(check(cudaIpcGetEventHandle(&handle, event), "cudaIpcGetEventHandle"));
  if (mode == "record") {
    status.Update(check(cudaLaunchHostFunc((*stream)->get(), AwaitSignal, nullptr), "cudaLaunchHostFunc"));
    status.Update(check(cudaEventRecord(event, (*stream)->get()), "cudaEventRecord"));
  }
  if (!status.ok()) return status;
  std::cout << absl::BytesToHexString(std::string(handle.reserved, sizeof(handle.reserved))) << " " << (*device)->uuid()
            << " ready" << std::endl;
  if (mode == "wait") {
    AwaitSignal(nullptr);
    status = check(cudaStreamWaitEvent((*stream)->get(), event, 0), "cudaStreamWaitEvent");
    std::cout << "waiting" << std::endl;
    status.Update((*stream)->Synchronize("a test"));
    if (!status.ok()) return status;
    std::cout << "passed" << std::endl;
  }
  while (true) pause();
}

}  // namespace
}  // namespace wsync::cuda

int main(int argc, char** argv) {
  signal(SIGUSR1, [](int) { wsync::cuda::signalled = true; });
  const absl::Status status = argc == 2 ? wsync::cuda::Run(argv[1]) : absl::InvalidArgumentError("usage");
  std::cerr << "cuda_event_peer: " << status << std::endl;
  return 1;
}
