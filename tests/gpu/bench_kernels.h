// What the benchmark needs on the device besides the kernels it measures.
#ifndef WSYNC_TESTS_GPU_BENCH_KERNELS_H_
#define WSYNC_TESTS_GPU_BENCH_KERNELS_H_

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

namespace wsync::cuda::testing {

// Fills memory with BF16 numbers spread as weights are: a sum of four uniform numbers, about 0.02 wide.
cudaError_t LaunchRandomWeights(std::byte* memory, int64_t count, uint64_t seed, cudaStream_t stream);

}  // namespace wsync::cuda::testing

#endif  // WSYNC_TESTS_GPU_BENCH_KERNELS_H_
