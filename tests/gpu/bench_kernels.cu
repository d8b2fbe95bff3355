#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "bench_kernels.h"
#include "kernels/digest.h"

namespace wsync::cuda::testing {
namespace {

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

cudaError_t LaunchRandomWeights(std::byte* memory, int64_t count, uint64_t seed, cudaStream_t stream) {
  RandomWeightsKernel<<<2048, 256, 0, stream>>>(reinterpret_cast<__nv_bfloat16*>(memory), count, seed);
  return cudaGetLastError();
}

}  // namespace wsync::cuda::testing
