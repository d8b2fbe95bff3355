// Rates of the GPU kernels on a model's true shapes, beside the device's own copy rate in the same run. --help says
// how.
//
// Everything is kept in memory at once where it fits. Where it does not (30B on 80 GB), the image is whole and the
// weights roll: tensors take turns in a window many times the second-level cache, so that the memory is used no less.
// The exit code is 1 when a digest disagrees, a number was taken for non-finite, or a rate is below what was asked for.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench_device.h"
#include "client/checkpoint/model_shapes.h"
#include "kernels/load_cuda.h"
#include "kernels/quantize_cuda.h"
#include "server/core/plan.h"

namespace wsync::cuda::testing {
namespace {

constexpr int64_t kTensorAlign = 512;              // of PyTorch's allocator
constexpr int64_t kSpareBytes = int64_t{2} << 30;  // for tables, and what else the driver wants

struct Options {
  std::vector<std::string> models = {"qwen2.5-7b", "qwen3-30b-a3b"};
  std::string granularity = "block";
  std::string output = "table";
  double min_ratio = 0;
};

// One line of the result. `bytes`: read and written, the fewest that the work needs.
struct Line {
  std::string what;
  double ms = 0;
  double bytes = 0;
  double ratio = 0;  // of the device's copy rate
};

int64_t FreeBytes() {
  size_t free = 0, total = 0;
  Require(cudaMemGetInfo(&free, &total), "ask for free memory");
  return static_cast<int64_t>(free);
}

class ModelBench {
 public:
  ModelBench(const std::string& model, Granularity granularity) {
    auto catalog = std::make_shared<const Catalog>(Catalog::Create(ModelTensors(model).value()).value());
    plan_ = Plan::Create(catalog, RecipeRules{.granularity = granularity}, kDefaultBucketBytes).value();
    image_ = Allocate(plan_->image_bytes(), "allocate the image");
    int64_t all = 0;
    for (const Tensor& tensor : catalog->tensors()) all += RoundUp(BytesOf(tensor), kTensorAlign);
    const int64_t window = std::min(all, (FreeBytes() - kSpareBytes) / kTensorAlign * kTensorAlign);
    weights_ = Allocate(window, "allocate the weights");
    PlaceTensors(window);
    rolling_bytes_ = window < all ? window : 0;
    Require(LaunchRandomWeights(weights_.get(), window / 2, 1, nullptr), "fill the weights");
    Require(cudaMemset(image_.get(), 0, static_cast<size_t>(plan_->image_bytes())), "clear the image");
    Require(cudaDeviceSynchronize(), "fill the weights");
    // The weights' memory is where the version is applied to; with room for alignment this always fits, but if not:
    if (window < plan_->payload_bytes() + kTensorAlign * static_cast<int64_t>(plan_->outputs().size())) {
      std::fprintf(stderr, "kernels_gpu_bench: %s: this device has too little memory\n", model.c_str());
      std::exit(1);
    }
  }

  void Run() {
    RunCopy();
    RunEncode();
    RunCheck();
    RunApply();
  }
  const Plan& plan() const { return *plan_; }
  const std::vector<Line>& lines() const { return lines_; }
  const std::vector<std::string>& errors() const { return errors_; }
  int64_t rolling_bytes() const { return rolling_bytes_; }
  double table_ms() const { return table_ms_; }
  int64_t table_bytes() const { return table_bytes_; }
  double encode_ratio() const { return encode_ratio_; }

 private:
  void PlaceTensors(int64_t window) {
    int64_t cursor = 0;
    for (const Tensor& tensor : plan_->catalog().tensors()) {
      const int64_t bytes = RoundUp(BytesOf(tensor), kTensorAlign);
      if (cursor + bytes > window) cursor = 0;
      weight_offsets_.push_back(cursor);
      cursor += bytes;
    }
  }

  double Add(const std::string& what, double bytes, double ms) {
    const double rate = bytes / ms;
    if (copy_rate_ == 0) copy_rate_ = rate;
    lines_.push_back({what, ms, bytes, rate / copy_rate_});
    return rate / copy_rate_;
  }
  std::byte* WireOf(int64_t bucket) const {
    return image_.get() + plan_->buckets()[static_cast<size_t>(bucket)].image_offset;
  }
  int64_t Buckets() const { return static_cast<int64_t>(plan_->buckets().size()); }
  double Payload() const { return static_cast<double>(plan_->payload_bytes()); }

  void RunCopy() {
    const int64_t bytes = std::min(plan_->image_bytes(), int64_t{16} << 30);
    const double ms = streams_.MedianMs([&] {
      Require(cudaMemcpyAsync(image_.get(), weights_.get(), static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                              streams_[0]),
              "copy");
    });
    Add("device copy", 2 * static_cast<double>(bytes), ms);
  }

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
           .scale_offset = p.scale_bytes > 0 ? p.scale_offset : kNoScales,
           .amax_slot = p.tensor});
    }
    return pieces;
  }

  void RunEncode() {
    std::vector<EncodeBucket> buckets;
    for (const Bucket& b : plan_->buckets()) buckets.push_back({b.piece_begin, b.piece_end, b.digest_offset});
    const auto start = std::chrono::steady_clock::now();
    const EncodeTable table = BuildEncodeTable(EncodePieces(), buckets);
    table_ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const DeviceMemory state = Allocate(table.state_bytes(), "allocate the state");
    table_bytes_ = static_cast<int64_t>(table.records.size() * sizeof(EncodeRecord) + 4 * table.items.size()) +
                   table.state_bytes();
    const EncodeDevice device{.records = reinterpret_cast<const EncodeRecord*>(records.get()),
                              .items = reinterpret_cast<const uint32_t*>(items.get()),
                              .state = state.get()};
    const auto encode = [&](size_t streams) {
      Require(LaunchEncodeReset(table, device, streams_[0]), "reset");
      Require(LaunchAmax(table, device, streams_[0]), "amax");
      if (streams == 2) streams_.Fork();
      for (int64_t k = 0; k < Buckets(); ++k) {
        Require(LaunchEncode(table, device, k, WireOf(k), streams_[static_cast<size_t>(k) % streams]), "encode");
      }
      if (streams == 2) streams_.Join();
    };
    const double moved = static_cast<double>(plan_->source_bytes()) + Payload();
    Add("quantize, one stream", moved, streams_.MedianMs([&] { encode(1); }));
    encode_ratio_ = Add("quantize, two streams", moved, streams_.MedianMs([&] { encode(2); }));
    for (uint64_t entry : Download<uint64_t>(state.get() + 8 * table.pieces(), table.pieces())) {
      if (entry == 0) continue;
      errors_.push_back("a weight was taken for non-finite");
      return;
    }
  }

  CheckTable TableOfChecks() const {
    std::vector<CheckPiece> pieces;
    std::vector<CheckBucket> buckets;
    for (const Piece& p : plan_->pieces()) {
      pieces.push_back({.data_offset = p.data_offset,
                        .row_begin = p.row_begin,
                        .rows = p.rows,
                        .row_bytes = p.data_bytes / p.rows,
                        .scale_offset = p.scale_offset,
                        .scale_count = p.scale_bytes / 4,
                        .first_scale = plan_->RecipeOf(p).fp8 ? plan_->FirstScaleOf(p) : 0});
    }
    for (const Bucket& b : plan_->buckets()) buckets.push_back({b.piece_begin, b.piece_end, b.digest_offset});
    return BuildCheckTable(pieces, buckets);
  }

  // Into memory laid out as an engine's, every output contiguous; the weights are overwritten.
  CopyTable TableOfCopies() const {
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
    return BuildCopyTable(copies, bucket_begin, image_offsets);
  }

  void RunCheck() {
    const CheckTable table = TableOfChecks();
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const DeviceMemory state = Allocate(table.state_bytes(), "allocate the state");
    const CheckDevice device{.records = reinterpret_cast<const CheckRecord*>(records.get()),
                             .items = reinterpret_cast<const uint32_t*>(items.get()),
                             .state = state.get()};
    const double ms = streams_.MedianMs([&] {
      Require(LaunchCheckReset(table, device, streams_[0]), "reset");
      for (int64_t k = 0; k < Buckets(); ++k) Require(LaunchCheck(table, device, k, WireOf(k), streams_[0]), "check");
    });
    Add("check (reads only)", Payload(), ms);
    int64_t mismatches = 0;
    for (const Mismatches& m : Download<Mismatches>(state.get() + table.mismatches_offset(0), Buckets())) {
      mismatches += m.count;
    }
    if (mismatches != 0) {
      errors_.push_back(std::to_string(mismatches) + " of " + std::to_string(plan_->pieces().size()) +
                        " pieces disagree with their digests");
    }
    RunInPlace(table, device);
  }

  // Check and guarded copy of one bucket after the other, as they land in place.
  void RunInPlace(const CheckTable& checks, const CheckDevice& check_device) {
    const CopyTable table = TableOfCopies();
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const CopyDevice device{.records = reinterpret_cast<const CopyRecord*>(records.get()),
                            .items = reinterpret_cast<const uint32_t*>(items.get())};
    const double ms = streams_.MedianMs([&] {
      Require(LaunchCheckReset(checks, check_device, streams_[0]), "reset");
      for (int64_t k = 0; k < Buckets(); ++k) {
        Require(LaunchCheck(checks, check_device, k, WireOf(k), streams_[0]), "check");
        Require(LaunchCopyBucket(table, device, k, WireOf(k), streams_[0], MismatchesOf(checks, check_device, k)),
                "guarded copy");
      }
    });
    Add("in place: check, copy", 3 * Payload(), ms);
  }

  void RunApply() {
    const CopyTable table = TableOfCopies();
    const DeviceMemory records = Upload(table.records), items = Upload(table.items);
    const CopyDevice device{.records = reinterpret_cast<const CopyRecord*>(records.get()),
                            .items = reinterpret_cast<const uint32_t*>(items.get())};
    const double ms =
        streams_.MedianMs([&] { Require(LaunchCopyAll(table, device, image_.get(), streams_[0]), "apply"); });
    Add("staged: apply, one launch", 2 * Payload(), ms);
  }

  std::shared_ptr<const Plan> plan_;
  std::vector<int64_t> weight_offsets_;
  DeviceMemory weights_, image_;
  TimedStreams streams_;
  int64_t rolling_bytes_ = 0;
  double copy_rate_ = 0;
  double encode_ratio_ = 0;
  double table_ms_ = 0;
  int64_t table_bytes_ = 0;
  std::vector<Line> lines_;
  std::vector<std::string> errors_;
};

void PrintTable(const std::string& model, const ModelBench& bench) {
  const Plan& plan = bench.plan();
  std::printf("%s: %zu tensors, %ld quantized, %zu pieces, %zu buckets, %.2f GB to %.2f GB\n", model.c_str(),
              plan.recipes().size(), static_cast<long>(plan.quantized_tensors()), plan.pieces().size(),
              plan.buckets().size(), 1e-9 * static_cast<double>(plan.source_bytes()),
              1e-9 * static_cast<double>(plan.payload_bytes()));
  std::printf("  encoder's table: %.1f MB on the device, built in %.1f ms\n",
              1e-6 * static_cast<double>(bench.table_bytes()), bench.table_ms());
  if (bench.rolling_bytes() > 0) {
    std::printf("  the weights do not fit: tensors take turns in %.1f GB\n",
                1e-9 * static_cast<double>(bench.rolling_bytes()));
  }
  for (const Line& line : bench.lines()) {
    std::printf("  %-28s %8.3f ms %8.1f GB/s %6.1f%% of the copy rate\n", line.what.c_str(), line.ms,
                1e-6 * line.bytes / line.ms, 100 * line.ratio);
  }
}

nlohmann::json JsonOf(const std::string& model, const ModelBench& bench) {
  nlohmann::json lines = nlohmann::json::array();
  for (const Line& line : bench.lines()) {
    lines.push_back(
        {{"what", line.what}, {"ms", line.ms}, {"gb_per_s", 1e-6 * line.bytes / line.ms}, {"copy_ratio", line.ratio}});
  }
  return {{"model", model},
          {"quantized_tensors", bench.plan().quantized_tensors()},
          {"source_bytes", bench.plan().source_bytes()},
          {"payload_bytes", bench.plan().payload_bytes()},
          {"rolling_window_bytes", bench.rolling_bytes()},
          {"lines", lines}};
}

int Run(const Options& options) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("SKIPPED: no GPU: %s\n", cudaGetErrorString(error));
    return 0;
  }
  cudaDeviceProp properties;
  Require(cudaGetDeviceProperties(&properties, 0), "describe the device");
  const bool table = options.output == "table";
  if (table) std::printf("%s, %s granularity\n", properties.name, options.granularity.c_str());
  nlohmann::json models = nlohmann::json::array();
  int status = 0;
  for (const std::string& model : options.models) {
    ModelBench bench(model, ParseGranularity(options.granularity).value());
    bench.Run();
    if (table) PrintTable(model, bench);
    models.push_back(JsonOf(model, bench));
    std::vector<std::string> errors = bench.errors();
    if (bench.encode_ratio() < options.min_ratio) errors.push_back("quantize is slower than asked for");
    for (const std::string& what : errors)
      std::fprintf(stderr, "kernels_gpu_bench: %s: %s\n", model.c_str(), what.c_str());
    if (!errors.empty()) status = 1;
  }
  if (!table) {
    const nlohmann::json all = {
        {"device", properties.name}, {"granularity", options.granularity}, {"models", models}, {"ok", status == 0}};
    std::printf("%s\n", all.dump(2).c_str());
  }
  return status;
}

}  // namespace
}  // namespace wsync::cuda::testing

int main(int argc, char** argv) {
  wsync::cuda::testing::Options options;
  CLI::App app("Rates of wsync's GPU kernels on the shapes of models, beside the device's own copy rate.");
  app.add_option("MODEL", options.models, "qwen2.5-7b and qwen3-30b-a3b unless named")
      ->check(CLI::IsMember(wsync::KnownModels()));
  app.add_option("-g,--granularity", options.granularity, "of the scales")
      ->check(CLI::IsMember({"block", "channel", "tensor"}));
  app.add_option("-o,--output", options.output, "how results are printed")->check(CLI::IsMember({"table", "json"}));
  app.add_option("--min-ratio", options.min_ratio, "fail when quantizing is slower than this part of the copy rate");
  CLI11_PARSE(app, argc, argv);
  return wsync::cuda::testing::Run(options);
}
