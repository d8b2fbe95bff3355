// What the GPU tests share: memory on the device, random weights, and buckets laid out as the plan lays them out,
// encoded by the kernels and by their host twins.
#ifndef WSYNC_TESTS_GPU_GPU_TESTING_H_
#define WSYNC_TESTS_GPU_GPU_TESTING_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../kernels/kernels_testing.h"
#include "kernels/load_cuda.h"
#include "kernels/quantize_cuda.h"

namespace wsync::cuda::testing {

#define ASSERT_CUDA(call) ASSERT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaGetLastError())
#define EXPECT_CUDA(call) EXPECT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaGetLastError())

// Skips, visibly, where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override;
};

inline constexpr uint8_t kPoison = 0xA5;

// Device memory, 256-byte aligned, poisoned, with poisoned guards of a kilobyte on both sides.
class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t size);
  explicit DeviceBytes(const std::vector<uint8_t>& bytes);
  template <class T>
  static DeviceBytes Of(const std::vector<T>& values) {
    const auto* first = reinterpret_cast<const uint8_t*>(values.data());
    return DeviceBytes(std::vector<uint8_t>(first, first + values.size() * sizeof(T)));
  }
  ~DeviceBytes();
  DeviceBytes(DeviceBytes&& other) noexcept : size_(other.size_), base_(std::exchange(other.base_, nullptr)) {}
  DeviceBytes& operator=(DeviceBytes&&) = delete;

  std::byte* data() const { return base_ + kGuard; }
  int64_t size() const { return size_; }
  void Write(int64_t offset, const void* bytes, int64_t count);
  std::vector<uint8_t> Read() const;  // waits for the device; expects the guards to be intact

 private:
  static constexpr int64_t kGuard = 1024;
  int64_t size_;
  std::byte* base_ = nullptr;
};

// A piece with its source on the host. `offset`: where the source begins after a 256-byte boundary on the device.
struct Source {
  std::vector<uint8_t> bytes;
  Dtype dtype = Dtype::kBF16;
  Recipe recipe;
  int64_t row_begin = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t amax_slot = 0;
  int64_t offset = 0;
};
Source SourceOf(const wsync::testing::Tensor& tensor, const Recipe& recipe);
// Rows [begin, end) of a whole tensor's source.
Source RowsOf(const Source& whole, int64_t begin, int64_t end);
std::string NameOf(const Source& source);

struct BucketLayout {
  std::vector<EncodePiece> pieces;  // without sources
  int64_t digest_offset = 0;
  int64_t wire_bytes = 0;
};
BucketLayout LayOut(const std::vector<Source>& sources);
CheckPiece CheckPieceOf(const EncodePiece& piece);

// One bucket, byte for byte, with what is known of its pieces.
struct Image {
  std::vector<uint8_t> wire;  // padding is poison
  std::vector<uint64_t> digests;
  std::vector<int64_t> nonfinite;
};
// By the host twins, one bucket per list.
std::vector<Image> EncodeOnHost(const std::vector<std::vector<Source>>& buckets);

// The kernels with all their memory: Encode may be called again after Replace, as one version follows another.
class GpuEncoder {
 public:
  explicit GpuEncoder(const std::vector<std::vector<Source>>& buckets);
  void Replace(size_t bucket, size_t piece, const std::vector<uint8_t>& bytes);
  std::vector<Image> Encode();
  const DeviceBytes& wire(size_t bucket) const { return wires_[bucket]; }

 private:
  EncodeTable BuildTable(const std::vector<std::vector<Source>>& buckets);

  std::vector<std::vector<DeviceBytes>> sources_;
  std::vector<std::vector<int64_t>> source_offsets_;
  std::vector<DeviceBytes> wires_;
  EncodeTable table_;
  DeviceBytes records_, items_, state_;
};
void ExpectSame(const Image& gpu, const Image& host, const std::vector<Source>& sources);
// Encodes on both sides and compares.
void ExpectHostBytes(const std::vector<std::vector<Source>>& buckets);

// verl with fp32 block scales is Triton's arithmetic on the GPU: compared with the golden file only.
bool IsTritons(const Recipe& recipe);
std::vector<Recipe> AllRecipes();  // but for IsTritons

using Draw = std::function<float(std::mt19937&)>;
const std::vector<Draw>& Draws();  // normal, heavy-tailed, any magnitude, subnormal, huge, signed zeros
wsync::testing::Tensor Random(Dtype dtype, int64_t rows, int64_t cols, const Draw& draw, uint32_t seed = 1);
std::vector<uint8_t> RandomBytes(int64_t count, uint32_t seed, uint8_t mask = 0xFF);

}  // namespace wsync::cuda::testing

#endif  // WSYNC_TESTS_GPU_GPU_TESTING_H_
