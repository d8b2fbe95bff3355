// How much one item of the GPU kernels' work holds: shared by the tables (host) and the kernels. Private to kernels.
#ifndef WSYNC_KERNELS_ITEMS_CUDA_H_
#define WSYNC_KERNELS_ITEMS_CUDA_H_

#include <cstdint>

namespace wsync::cuda {

inline constexpr int kThreads = 256;  // of a block
inline constexpr int kSteps = 8;      // chunks of one thread in one item: 32 registers
inline constexpr int64_t kChunkBytes = 16;
inline constexpr int64_t kChunkElements = 8;  // of 16 bits; they give one digest word of codes
inline constexpr int64_t kItemChunks = kThreads * kSteps;
inline constexpr int64_t kItemElements = kItemChunks * kChunkElements;  // one 128x128 tile
inline constexpr int64_t kSlowItemWords = 4096;
inline constexpr int64_t kAmaxItemElements = 65536;

inline constexpr int64_t kCheckItemChunks = 2048;     // 32 KiB
inline constexpr int64_t kCheckSlowItemWords = 4096;  // as many bytes
inline constexpr int64_t kCopyItemBytes = kItemChunks * kChunkBytes;

// Blocks of a kernel with one thread for each of `count`.
constexpr uint32_t BlocksFor(uint32_t count) { return (count + kThreads - 1) / kThreads; }

}  // namespace wsync::cuda

#endif  // WSYNC_KERNELS_ITEMS_CUDA_H_
