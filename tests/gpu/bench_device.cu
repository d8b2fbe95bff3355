#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "bench_device.h"
#include "kernels/digest.h"

namespace wsync::cuda::testing {
namespace {

constexpr int kWarmUps = 3, kRepeats = 20;

__global__ void RandomWeightsKernel(__nv_bfloat16* memory, int64_t count, uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    uint64_t bits = DigestMix(seed, static_cast<uint64_t>(i));
    float sum = 0;
    for (int k = 0; k < 4; ++k, bits >>= 16) sum += static_cast<float>(bits & 0xFFFF) / 65536.0f - 0.5f;
    memory[i] = __float2bfloat16(sum * 0.035f);
  }
}

}  // namespace

void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernels_gpu_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

DeviceMemory Allocate(int64_t bytes, const char* what) {
  void* memory = nullptr;
  Require(cudaMalloc(&memory, static_cast<size_t>(std::max(bytes, int64_t{1}))), what);
  return DeviceMemory(static_cast<std::byte*>(memory));
}

cudaError_t LaunchRandomWeights(std::byte* memory, int64_t count, uint64_t seed, cudaStream_t stream) {
  RandomWeightsKernel<<<2048, 256, 0, stream>>>(reinterpret_cast<__nv_bfloat16*>(memory), count, seed);
  return cudaGetLastError();
}

TimedStreams::TimedStreams() {
  for (cudaStream_t& stream : streams_) {
    Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  }
  for (cudaEvent_t* event : {&begin_, &end_}) Require(cudaEventCreate(event), "make an event");
  for (cudaEvent_t* event : {&fork_, &join_}) {
    Require(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "make an event");
  }
}

void TimedStreams::Fork() {
  Require(cudaEventRecord(fork_, streams_[0]), "record");
  Require(cudaStreamWaitEvent(streams_[1], fork_), "wait");
}

void TimedStreams::Join() {
  Require(cudaEventRecord(join_, streams_[1]), "record");
  Require(cudaStreamWaitEvent(streams_[0], join_), "wait");
}

double TimedStreams::MedianMs(const std::function<void()>& work) {
  std::vector<float> times;
  for (int i = 0; i < kWarmUps + kRepeats; ++i) {
    Require(cudaEventRecord(begin_, streams_[0]), "record");
    work();
    Require(cudaEventRecord(end_, streams_[0]), "record");
    Require(cudaEventSynchronize(end_), "run");
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin_, end_), "time");
    if (i >= kWarmUps) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

}  // namespace wsync::cuda::testing
