// What the GPU kernels share: digest arithmetic, loads that pass the first-level cache, sums over a block.
#ifndef WSYNC_KERNELS_DEVICE_CUDA_CUH_
#define WSYNC_KERNELS_DEVICE_CUDA_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/digest.h"
#include "kernels/items_cuda.h"

namespace wsync::cuda {

using Word = unsigned long long;  // what CUDA's 64-bit atomics take

inline constexpr int kWarps = kThreads / 32;

__device__ __forceinline__ int LaneId() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int WarpId() { return static_cast<int>(threadIdx.x) / 32; }

// DigestMix of a word to which (index + 1) * kDigestGolden has been added: callers step that product by addition.
__device__ __forceinline__ Word Mix(Word x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}
__device__ __forceinline__ Word DigestOffset(Word index) { return (index + 1) * kDigestGolden; }
__device__ __forceinline__ Word WordOf(uint32_t low, uint32_t high) { return Word{high} << 32 | low; }

// Weights are read once: no place in the first-level cache for them.
__device__ __forceinline__ uint4 LoadOnce(const void* source) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(source));
  return v;
}

// What is written is not read again soon: marked to leave the second-level cache first, it goes out in longer runs,
// which gains a tenth of the memory's rate.
template <class T>
__device__ __forceinline__ void StoreStreaming(T* out, T value) {
  __stcs(out, value);
}

__device__ __forceinline__ Word WarpSum(Word x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(~0u, x, offset);
  return x;  // of lane 0
}

// Up to 8 bytes as one zero-padded digest word, by the widest loads that the address allows.
__device__ inline Word LoadBytes(const uint8_t* source, int bytes) {
  const auto address = reinterpret_cast<uintptr_t>(source);
  if (bytes == 8 && address % 8 == 0) return *reinterpret_cast<const Word*>(source);
  Word word = 0;
  if (bytes % 2 == 0 && address % 2 == 0) {
    for (int i = 0; i < bytes; i += 2) word |= Word{*reinterpret_cast<const uint16_t*>(source + i)} << (8 * i);
    return word;
  }
  for (int i = 0; i < bytes; ++i) word |= Word{source[i]} << (8 * i);
  return word;
}

__device__ inline void StoreBytes(uint8_t* out, Word word, int bytes) {
  if (bytes == 8 && reinterpret_cast<uintptr_t>(out) % 8 == 0) {
    *reinterpret_cast<Word*>(out) = word;
    return;
  }
  for (int i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(word >> (8 * i));
}

// Makes the current device load kernels that would be loaded when they are first launched.
template <class... Kernel>
cudaError_t Preload(Kernel*... kernels) {
  cudaFuncAttributes unused;
  cudaError_t error = cudaSuccess;
  ((error = error == cudaSuccess ? cudaFuncGetAttributes(&unused, kernels) : error), ...);
  return error;
}

// Adds the block's digests to `sum` in global memory, by one atomic.
__device__ __forceinline__ void AddBlockDigest(Word digest, Word* sum) {
  __shared__ Word warp_digest[kWarps];
  digest = WarpSum(digest);
  if (LaneId() == 0) warp_digest[WarpId()] = digest;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) digest += warp_digest[warp];
  atomicAdd(sum, digest);
}

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_DEVICE_CUDA_CUH_
