// Rates of the GPU kernels on a model's true shapes, beside the device's own copy rate in the same run:
//
//     kernels_gpu_bench [MODEL]...        default: qwen2.5-7b qwen3-30b-a3b
//
// Needs room for the BF16 weights and the FP8 image. Medians of 20 versions after 3 to warm up, by events.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench_kernels.h"
#include "client/checkpoint/model_shapes.h"
#include "kernels/load_cuda.h"
#include "kernels/quantize_cuda.h"
#include "server/core/plan.h"

namespace wsync::cuda::testing {
namespace {

constexpr int kWarmUps = 3, kRepeats = 20;
constexpr int64_t kTensorAlign = 512;  // of PyTorch's allocator

void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernels_gpu_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

struct FreeDevice {
  void operator()(std::byte* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<std::byte, FreeDevice>;

DeviceMemory Allocate(int64_t bytes, const char* what) {
  void* memory = nullptr;
  Require(cudaMalloc(&memory, static_cast<size_t>(std::max(bytes, kTensorAlign))), what);
  return DeviceMemory(static_cast<std::byte*>(memory));
}

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

// Two streams that work side by side between two events of the first.
class Streams {
 public:
  Streams() {
    for (cudaStream_t& stream : streams_) {
      Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
    }
    for (cudaEvent_t* event : {&begin_, &end_}) Require(cudaEventCreate(event), "make an event");
    for (cudaEvent_t* event : {&fork_, &join_}) {
      Require(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "make an event");
    }
  }
  cudaStream_t operator[](size_t i) const { return streams_[i]; }

  double MedianMs(const std::function<void()>& work) {
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
  void Fork() {
    Require(cudaEventRecord(fork_, streams_[0]), "record");
    Require(cudaStreamWaitEvent(streams_[1], fork_), "wait");
  }
  void Join() {
    Require(cudaEventRecord(join_, streams_[1]), "record");
    Require(cudaStreamWaitEvent(streams_[0], join_), "wait");
  }

 private:
  cudaStream_t streams_[2];
  cudaEvent_t begin_, end_, fork_, join_;
};

class ModelBench {
 public:
  explicit ModelBench(const std::string& model) : model_(model) {
    auto catalog = std::make_shared<const Catalog>(Catalog::Create(ModelTensors(model).value()).value());
    plan_ = Plan::Create(catalog, RecipeRules{}, kDefaultBucketBytes).value();
    int64_t bytes = 0;
    for (const Tensor& tensor : catalog->tensors()) {
      weight_offsets_.push_back(bytes);
      bytes += RoundUp(BytesOf(tensor), kTensorAlign);
    }
    weights_ = Allocate(bytes, "allocate the weights");
    image_ = Allocate(plan_->image_bytes(), "allocate the image");
    Require(LaunchRandomWeights(weights_.get(), bytes / 2, 1, nullptr), "fill the weights");
    Require(cudaDeviceSynchronize(), "fill the weights");
  }

  void Run() {
    const double moved = static_cast<double>(plan_->source_bytes() + plan_->payload_bytes());
    const int64_t image_bytes = plan_->image_bytes();
    std::printf("%s: %zu tensors, %ld quantized, %zu pieces, %zu buckets, %.2f GB to %.2f GB\n", model_.c_str(),
                plan_->recipes().size(), static_cast<long>(plan_->quantized_tensors()), plan_->pieces().size(),
                plan_->buckets().size(), static_cast<double>(plan_->source_bytes()) / 1e9,
                static_cast<double>(plan_->payload_bytes()) / 1e9);
    const double copy_ms = streams_.MedianMs([&] {
      Require(cudaMemcpyAsync(image_.get(), weights_.get(), static_cast<size_t>(image_bytes), cudaMemcpyDeviceToDevice,
                              streams_[0]),
              "copy");
    });
    copy_rate_ = 2e-6 * static_cast<double>(image_bytes) / copy_ms;
    std::printf("  %-28s %8.3f ms %8.1f GB/s\n", "device copy", copy_ms, copy_rate_);
    RunEncode(moved);
    RunCheck();
    RunApply();
  }

 private:
  void Print(const char* what, double ms, double bytes) const {
    const double rate = 1e-6 * bytes / ms;
    std::printf("  %-28s %8.3f ms %8.1f GB/s %6.1f%% of the copy rate\n", what, ms, rate, 100 * rate / copy_rate_);
  }
  std::byte* WireOf(int64_t bucket) const {
    return image_.get() + plan_->buckets()[static_cast<size_t>(bucket)].image_offset;
  }
  int64_t Buckets() const { return static_cast<int64_t>(plan_->buckets().size()); }

  std::vector<EncodePiece> EncodePieces() const {
    std::vector<EncodePiece> pieces;
    for (const Piece& p : plan_->pieces()) {
      const Tensor& tensor = plan_->catalog().tensors()[static_cast<size_t>(p.tensor)];
      const int64_t row_bytes = ViewOf(tensor).cols * DtypeBytes(tensor.dtype);
      pieces.push_back(
          {.source = weights_.get() + weight_offsets_[static_cast<size_t>(p.tensor)] + p.row_begin * row_bytes,
           .dtype = tensor.dtype,
           .recipe = plan_->RecipeOf(p),
           .row_begin = p.row_begin,
           .rows = p.rows,
           .cols = ViewOf(tensor).cols,
           .data_offset = p.data_offset,
           .scale_offset = p.scale_bytes > 0 ? p.scale_offset : kNoScales});
    }
    return pieces;
  }

  void RunEncode(double moved) {
    std::vector<EncodeBucket> buckets;
    for (const Bucket& b : plan_->buckets()) buckets.push_back({b.piece_begin, b.piece_end, b.digest_offset});
    const auto start = std::chrono::steady_clock::now();
    const EncodeTable table = BuildEncodeTable(EncodePieces(), buckets);
    const std::chrono::duration<double, std::milli> built = std::chrono::steady_clock::now() - start;
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const DeviceMemory state = Allocate(table.state_bytes(), "allocate the state");
    const EncodeDevice device{.records = reinterpret_cast<const EncodeRecord*>(records.get()),
                              .items = reinterpret_cast<const uint32_t*>(items.get()),
                              .state = state.get()};
    std::printf("  table: %zu items, %.1f MB on the device, built in %.1f ms\n", table.items.size(),
                1e-6 * static_cast<double>(128 * table.records.size() + 4 * table.items.size() + table.state_bytes()),
                built.count());
    const auto encode = [&](size_t streams) {
      Require(LaunchEncodeReset(table, device, streams_[0]), "reset");
      if (streams == 2) streams_.Fork();
      for (int64_t k = 0; k < Buckets(); ++k) {
        Require(LaunchEncode(table, device, k, WireOf(k), streams_[static_cast<size_t>(k) % streams]), "encode");
      }
      if (streams == 2) streams_.Join();
    };
    Print("encode", streams_.MedianMs([&] { encode(1); }), moved);
    Print("encode, two streams", streams_.MedianMs([&] { encode(2); }), moved);
    for (uint64_t entry : Download<uint64_t>(state.get() + 8 * table.pieces(), table.pieces())) {
      if (entry != 0) std::printf("  ERROR: a weight was taken for non-finite\n");
    }
  }

  void RunCheck() {
    std::vector<CheckPiece> pieces;
    std::vector<CheckBucket> buckets;
    for (const Piece& p : plan_->pieces()) {
      const bool fp8 = plan_->RecipeOf(p).fp8;
      pieces.push_back({.data_offset = p.data_offset,
                        .row_begin = p.row_begin,
                        .rows = p.rows,
                        .row_bytes = p.data_bytes / p.rows,
                        .scale_offset = p.scale_offset,
                        .scale_count = p.scale_bytes / 4,
                        .first_scale = fp8 ? plan_->FirstScaleOf(p) : 0});
    }
    for (const Bucket& b : plan_->buckets()) buckets.push_back({b.piece_begin, b.piece_end, b.digest_offset});
    const CheckTable table = BuildCheckTable(pieces, buckets);
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const DeviceMemory state = Allocate(table.state_bytes(), "allocate the state");
    const CheckDevice device{.records = reinterpret_cast<const CheckRecord*>(records.get()),
                             .items = reinterpret_cast<const uint32_t*>(items.get()),
                             .state = state.get()};
    const double ms = streams_.MedianMs([&] {
      Require(LaunchCheckReset(table, device, streams_[0]), "reset");
      for (int64_t k = 0; k < Buckets(); ++k) Require(LaunchCheck(table, device, k, WireOf(k), streams_[0]), "check");
    });
    Print("check (bytes read)", ms, static_cast<double>(plan_->payload_bytes()));
    uint32_t mismatches = 0;
    for (const Mismatches& m : Download<Mismatches>(state.get() + table.mismatches_offset(0), Buckets())) {
      mismatches += m.count;
    }
    std::printf("  %s: %u of %zu pieces disagree with their digests\n", mismatches == 0 ? "verified" : "ERROR",
                mismatches, plan_->pieces().size());
  }

  // Into memory laid out as an engine's, every output contiguous; the weights are overwritten.
  void RunApply() {
    std::vector<Copy> copies;
    std::vector<int64_t> bucket_begin = {0}, image_offsets;
    int64_t dest = 0;
    for (const Bucket& bucket : plan_->buckets()) {
      for (const Piece& p : plan_->PiecesOf(bucket)) {
        for (const auto& [offset, bytes] : {std::pair{p.data_offset, p.data_bytes}, {p.scale_offset, p.scale_bytes}}) {
          if (bytes == 0) continue;
          copies.push_back({offset, bytes, weights_.get() + dest, bytes, 1, bytes});
          dest += RoundUp(bytes, kTensorAlign);
        }
      }
      bucket_begin.push_back(static_cast<int64_t>(copies.size()));
      image_offsets.push_back(bucket.image_offset);
    }
    const CopyTable table = BuildCopyTable(copies, bucket_begin, image_offsets);
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const CopyDevice device{.records = reinterpret_cast<const CopyRecord*>(records.get()),
                            .items = reinterpret_cast<const uint32_t*>(items.get())};
    const double ms =
        streams_.MedianMs([&] { Require(LaunchCopyAll(table, device, image_.get(), streams_[0]), "apply"); });
    Print("apply, one launch", ms, 2 * static_cast<double>(plan_->payload_bytes()));
  }

  const std::string model_;
  std::shared_ptr<const Plan> plan_;
  std::vector<int64_t> weight_offsets_;
  DeviceMemory weights_, image_;
  Streams streams_;
  double copy_rate_ = 0;
};

int Main(std::vector<std::string> models) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU\n");
    return 0;
  }
  cudaDeviceProp properties;
  Require(cudaGetDeviceProperties(&properties, 0), "describe the device");
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  if (models.empty()) models = {"qwen2.5-7b", "qwen3-30b-a3b"};
  for (const std::string& model : models) ModelBench(model).Run();
  return 0;
}

}  // namespace
}  // namespace wsync::cuda::testing

int main(int argc, char** argv) { return wsync::cuda::testing::Main({argv + 1, argv + argc}); }
