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

// WSYNC_GPU_TEST_SMALL in the environment: less of everything, for tools that make kernels a hundred times slower.
bool Small();

// Skips, visibly, where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override;
};

inline constexpr uint8_t kPoison = 0xA5;

// Device memory, 256-byte aligned, poisoned. What kernels write has poisoned guards on both sides; what they only read
// ends with its allocation, so that a memory checker sees a read beyond it.
class DeviceBytes {
 public:
  explicit DeviceBytes(int64_t size, int64_t guard = kGuard);
  explicit DeviceBytes(const std::vector<uint8_t>& bytes);  // to be read
  template <class T>
  static DeviceBytes Of(const std::vector<T>& values) {
    const auto* first = reinterpret_cast<const uint8_t*>(values.data());
    return DeviceBytes(std::vector<uint8_t>(first, first + values.size() * sizeof(T)));
  }
  ~DeviceBytes();
  DeviceBytes(DeviceBytes&& other) noexcept
      : size_(other.size_), guard_(other.guard_), base_(std::exchange(other.base_, nullptr)) {}
  DeviceBytes& operator=(DeviceBytes&&) = delete;

  std::byte* data() const { return base_ + guard_; }
  int64_t size() const { return size_; }
  // All three wait for the device.
  void Poison();
  void Write(int64_t offset, const void* bytes, int64_t count);
  std::vector<uint8_t> Read() const;  // expects the guards to be intact

 private:
  static constexpr int64_t kGuard = 1024;
  int64_t size_;
  int64_t guard_;
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

// Two streams: work on the second lies between Fork and Join, and so between what the first does before and after.
class Streams {
 public:
  Streams();
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;
  cudaStream_t operator[](size_t i) const { return streams_[i]; }
  void Fork();
  void Join();

 private:
  cudaStream_t streams_[2] = {};
  cudaEvent_t fork_ = nullptr, join_ = nullptr;
};

// The kernels with all their memory: Encode may be called again after Replace, as one version follows another.
class GpuEncoder {
 public:
  explicit GpuEncoder(const std::vector<std::vector<Source>>& buckets);
  ~GpuEncoder();
  GpuEncoder(const GpuEncoder&) = delete;
  GpuEncoder& operator=(const GpuEncoder&) = delete;
  void Replace(size_t bucket, size_t piece, const std::vector<uint8_t>& bytes);
  std::vector<Image> Encode();  // buckets alternate between two streams; memory is poisoned before
  // The same from a graph of the launches, captured at the first call. Capture refuses whatever waits or allocates.
  std::vector<Image> EncodeByGraph();

 private:
  EncodeTable BuildTable(const std::vector<std::vector<Source>>& buckets);
  void Poison();
  void Launch();
  std::vector<Image> Read();

  Streams streams_;
  cudaGraphExec_t graph_ = nullptr;
  std::vector<std::vector<DeviceBytes>> sources_;
  std::vector<std::vector<int64_t>> source_offsets_;
  std::vector<DeviceBytes> wires_;
  EncodeTable table_;
  DeviceBytes records_, items_, state_;
};
void ExpectSame(const Image& gpu, const Image& host, const std::vector<Source>& sources);
// Encodes on both sides and compares.
void ExpectHostBytes(const std::vector<std::vector<Source>>& buckets);

std::vector<Recipe> AllRecipes();  // but for kTritons
// Triton's arithmetic on the GPU: the golden file has its bytes, the host twin is only near.
inline constexpr Recipe kTritons = {.fp8 = true, .granularity = Granularity::kBlock, .preset = Preset::kVerl};

using Draw = std::function<float(std::mt19937&)>;
const std::vector<Draw>& Draws();  // normal, heavy-tailed, any magnitude, subnormal, huge, signed zeros
wsync::testing::Tensor Random(Dtype dtype, int64_t rows, int64_t cols, const Draw& draw, uint32_t seed = 1);
std::vector<uint8_t> RandomBytes(int64_t count, uint32_t seed, uint8_t mask = 0xFF);

}  // namespace wsync::cuda::testing

#endif  // WSYNC_TESTS_GPU_GPU_TESTING_H_
