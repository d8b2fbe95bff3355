// Bytes that both processes of cuda_memory_test know.
#ifndef WSYNC_TESTS_BACKEND_CUDA_IPC_PATTERN_H_
#define WSYNC_TESTS_BACKEND_CUDA_IPC_PATTERN_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace wsync::cuda {

inline std::vector<uint8_t> PatternOf(int64_t bytes, uint32_t seed) {
  std::vector<uint8_t> pattern(static_cast<size_t>(bytes));
  uint32_t state = seed;
  for (uint8_t& byte : pattern) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return pattern;
}

inline void WritePattern(std::byte* device, int64_t bytes, uint32_t seed) {
  cudaMemcpy(device, PatternOf(bytes, seed).data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice);
  cudaDeviceSynchronize();
}

inline bool HoldsPattern(const std::byte* device, int64_t bytes, uint32_t seed, std::string* what) {
  std::vector<uint8_t> found(static_cast<size_t>(bytes));
  const cudaError_t error = cudaMemcpy(found.data(), device, found.size(), cudaMemcpyDeviceToHost);
  *what = error != cudaSuccess ? cudaGetErrorString(error) : "other bytes than were written";
  return error == cudaSuccess && found == PatternOf(bytes, seed);
}

}  // namespace wsync::cuda

#endif  // WSYNC_TESTS_BACKEND_CUDA_IPC_PATTERN_H_
