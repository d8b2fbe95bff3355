// What a benchmark needs of a device: memory that frees itself, random weights, and medians of what streams do. Errors
// end the process: nothing measured after one would mean anything.
#ifndef WSYNC_TESTS_GPU_BENCH_DEVICE_H_
#define WSYNC_TESTS_GPU_BENCH_DEVICE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace wsync::cuda::testing {

void Require(cudaError_t error, const char* what);

struct FreeDevice {
  void operator()(std::byte* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<std::byte, FreeDevice>;

DeviceMemory Allocate(int64_t bytes, const char* what);

template <class T>
DeviceMemory Upload(const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  DeviceMemory memory = Allocate(bytes, "allocate a table");
  Require(cudaMemcpy(memory.get(), values.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "upload");
  return memory;
}

template <class T>
std::vector<T> Download(const std::byte* memory, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  Require(cudaMemcpy(values.data(), memory, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "download");
  return values;
}

// Fills memory with BF16 numbers spread as weights are: a sum of four uniform numbers, about 0.02 wide.
cudaError_t LaunchRandomWeights(std::byte* memory, int64_t count, uint64_t seed, cudaStream_t stream);

// Two streams; work on the second lies between Fork and Join.
class TimedStreams {
 public:
  TimedStreams();
  cudaStream_t operator[](size_t i) const { return streams_[i]; }
  void Fork();
  void Join();
  // Of 20 runs after 3 to warm up, by events of the first stream.
  double MedianMs(const std::function<void()>& work);

 private:
  cudaStream_t streams_[2];
  cudaEvent_t begin_, end_, fork_, join_;
};

}  // namespace wsync::cuda::testing

#endif  // WSYNC_TESTS_GPU_BENCH_DEVICE_H_
