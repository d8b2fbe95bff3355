#include "gpu_testing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>

#include "kernels/digest.h"

namespace wsync::cuda::testing {
namespace {

float Normal(std::mt19937& random) { return std::normal_distribution<float>(0, 0.02f)(random); }
float HeavyTailed(std::mt19937& random) {
  const float x = std::normal_distribution<float>(0, 1)(random);
  return x * std::exp2(6 * std::fabs(x));
}
float AnyMagnitude(std::mt19937& random) {
  const float x = std::exp2(std::uniform_real_distribution<float>(-149, 127.9f)(random));
  return random() % 2 == 0 ? x : -x;
}
float Subnormal(std::mt19937& random) { return std::bit_cast<float>(static_cast<uint32_t>(random()) & 0x807FFFFF); }
float Huge(std::mt19937& random) { return 3.3e38f * std::uniform_real_distribution<float>(-1, 1)(random); }
float SignedZero(std::mt19937& random) { return random() % 2 == 0 ? 0.0f : -0.0f; }

// The largest magnitude per amax slot, over all pieces of all buckets.
std::map<int64_t, float> AmaxBySlot(const std::vector<std::vector<Source>>& buckets) {
  std::map<int64_t, float> amax;
  for (const auto& sources : buckets) {
    for (const Source& s : sources) {
      if (!s.recipe.fp8 || s.recipe.granularity != Granularity::kTensor) continue;
      const auto* bytes = reinterpret_cast<const std::byte*>(s.bytes.data());
      amax[s.amax_slot] = std::max(amax[s.amax_slot], AbsMax(bytes, s.dtype, s.row_begin, s.rows, s.cols).amax);
    }
  }
  return amax;
}

Image EncodeOnHost(const std::vector<Source>& sources, std::map<int64_t, float>& amax) {
  const BucketLayout layout = LayOut(sources);
  Image image{.wire = std::vector<uint8_t>(static_cast<size_t>(layout.wire_bytes), kPoison)};
  auto* const wire = reinterpret_cast<std::byte*>(image.wire.data());
  for (size_t i = 0; i < sources.size(); ++i) {
    const Source& s = sources[i];
    const EncodePiece& piece = layout.pieces[i];
    const EncodeResult result =
        Encode({.source = reinterpret_cast<const std::byte*>(s.bytes.data()),
                .dtype = s.dtype,
                .row_begin = s.row_begin,
                .rows = s.rows,
                .cols = s.cols,
                .recipe = s.recipe,
                .tensor_amax = amax[s.amax_slot],
                .data = wire + piece.data_offset,
                .scales = piece.scale_offset == kNoScales ? nullptr : wire + piece.scale_offset});
    image.digests.push_back(result.digest);
    image.nonfinite.push_back(result.first_nonfinite);
  }
  std::memcpy(wire + layout.digest_offset, image.digests.data(), 8 * sources.size());
  return image;
}

}  // namespace

void GpuTest::SetUp() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU: " << cudaGetErrorString(error);
}

bool Small() { return std::getenv("WSYNC_GPU_TEST_SMALL") != nullptr; }

DeviceBytes::DeviceBytes(int64_t size, int64_t guard) : size_(size), guard_(guard) {
  const int64_t total = std::max(int64_t{1}, size + 2 * guard);
  EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&base_), static_cast<size_t>(total)));
  Poison();
}

DeviceBytes::DeviceBytes(const std::vector<uint8_t>& bytes) : DeviceBytes(static_cast<int64_t>(bytes.size()), 0) {
  Write(0, bytes.data(), size_);
}

DeviceBytes::~DeviceBytes() {
  if (base_ != nullptr) cudaFree(base_);
}

void DeviceBytes::Poison() {
  EXPECT_CUDA(cudaMemset(base_, kPoison, static_cast<size_t>(size_ + 2 * guard_)));
  EXPECT_CUDA(cudaDeviceSynchronize());
}

void DeviceBytes::Write(int64_t offset, const void* bytes, int64_t count) {
  EXPECT_CUDA(cudaMemcpy(data() + offset, bytes, static_cast<size_t>(count), cudaMemcpyHostToDevice));
  EXPECT_CUDA(cudaDeviceSynchronize());
}

std::vector<uint8_t> DeviceBytes::Read() const {
  EXPECT_CUDA(cudaDeviceSynchronize());
  std::vector<uint8_t> all(static_cast<size_t>(size_ + 2 * guard_));
  EXPECT_CUDA(cudaMemcpy(all.data(), base_, all.size(), cudaMemcpyDeviceToHost));
  const auto intact = [](uint8_t byte) { return byte == kPoison; };
  EXPECT_TRUE(std::all_of(all.begin(), all.begin() + guard_, intact)) << "guard before";
  EXPECT_TRUE(std::all_of(all.end() - guard_, all.end(), intact)) << "guard after";
  return {all.begin() + guard_, all.end() - guard_};
}

Streams::Streams() {
  for (cudaStream_t& stream : streams_) EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (cudaEvent_t* event : {&fork_, &join_}) EXPECT_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
}

Streams::~Streams() {
  for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  for (cudaEvent_t event : {fork_, join_}) cudaEventDestroy(event);
}

void Streams::Fork() {
  EXPECT_CUDA(cudaEventRecord(fork_, streams_[0]));
  EXPECT_CUDA(cudaStreamWaitEvent(streams_[1], fork_));
}

void Streams::Join() {
  EXPECT_CUDA(cudaEventRecord(join_, streams_[1]));
  EXPECT_CUDA(cudaStreamWaitEvent(streams_[0], join_));
}

Source SourceOf(const wsync::testing::Tensor& tensor, const Recipe& recipe) {
  Source source{.dtype = tensor.dtype, .recipe = recipe, .rows = tensor.rows, .cols = tensor.cols};
  source.bytes.resize(static_cast<size_t>(tensor.rows * tensor.cols * DtypeBytes(tensor.dtype)));
  std::memcpy(source.bytes.data(), tensor.data(), source.bytes.size());
  return source;
}

Source RowsOf(const Source& whole, int64_t begin, int64_t end) {
  Source part = whole;
  const int64_t row_bytes = whole.cols * DtypeBytes(whole.dtype);
  part.bytes.assign(whole.bytes.begin() + begin * row_bytes, whole.bytes.begin() + end * row_bytes);
  part.row_begin = whole.row_begin + begin;
  part.rows = end - begin;
  return part;
}

std::string NameOf(const Source& s) {
  std::string name = std::string(DtypeName(s.dtype)) + " " + std::to_string(s.rows) + "x" + std::to_string(s.cols) +
                     " from row " + std::to_string(s.row_begin) + ", source at +" + std::to_string(s.offset);
  if (!s.recipe.fp8) return name + ", raw";
  return name + ", " + std::string(GranularityName(s.recipe.granularity)) + " " +
         std::string(ScaleFormatName(s.recipe.scale_format)) + " " + std::string(PresetName(s.recipe.preset));
}

BucketLayout LayOut(const std::vector<Source>& sources) {
  BucketLayout layout;
  int64_t cursor = 0;
  for (const Source& s : sources) {
    EncodePiece piece{.dtype = s.dtype, .recipe = s.recipe, .row_begin = s.row_begin, .rows = s.rows, .cols = s.cols};
    piece.amax_slot = s.amax_slot;
    piece.data_offset = RoundUp(cursor, kWireAlign);
    cursor = piece.data_offset + s.rows * s.cols * (s.recipe.fp8 ? 1 : DtypeBytes(s.dtype));
    const Granularity g = s.recipe.granularity;
    if (s.recipe.fp8 && (g != Granularity::kTensor || s.row_begin == 0)) {
      piece.scale_offset = RoundUp(cursor, kWireAlign);
      cursor = piece.scale_offset + 4 * ScaleRows(g, s.rows) * ScaleCols(g, s.cols);
    }
    layout.pieces.push_back(piece);
  }
  layout.digest_offset = RoundUp(cursor, kWireAlign);
  layout.wire_bytes = RoundUp(layout.digest_offset + 8 * static_cast<int64_t>(sources.size()), kWireAlign);
  return layout;
}

CheckPiece CheckPieceOf(const EncodePiece& piece) {
  const Granularity g = piece.recipe.granularity;
  CheckPiece check{.data_offset = piece.data_offset, .row_begin = piece.row_begin, .rows = piece.rows};
  check.row_bytes = piece.cols * (piece.recipe.fp8 ? 1 : DtypeBytes(piece.dtype));
  if (piece.scale_offset == kNoScales) return check;
  check.scale_offset = piece.scale_offset;
  check.scale_count = ScaleRows(g, piece.rows) * ScaleCols(g, piece.cols);
  if (g != Granularity::kTensor) check.first_scale = ScaleRows(g, piece.row_begin) * ScaleCols(g, piece.cols);
  return check;
}

std::vector<Image> EncodeOnHost(const std::vector<std::vector<Source>>& buckets) {
  std::map<int64_t, float> amax = AmaxBySlot(buckets);
  std::vector<Image> images;
  for (const auto& sources : buckets) images.push_back(EncodeOnHost(sources, amax));
  return images;
}

GpuEncoder::~GpuEncoder() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

GpuEncoder::GpuEncoder(const std::vector<std::vector<Source>>& buckets)
    : table_(BuildTable(buckets)),
      records_(DeviceBytes::Of(table_.records)),
      items_(DeviceBytes::Of(table_.items)),
      state_(table_.state_bytes()) {}

EncodeTable GpuEncoder::BuildTable(const std::vector<std::vector<Source>>& buckets) {
  std::vector<EncodePiece> pieces;
  std::vector<EncodeBucket> spans;
  for (const auto& sources : buckets) {
    BucketLayout layout = LayOut(sources);
    const auto begin = static_cast<int64_t>(pieces.size());
    sources_.emplace_back();
    source_offsets_.emplace_back();
    for (size_t i = 0; i < sources.size(); ++i) {
      const Source& s = sources[i];
      DeviceBytes& bytes = sources_.back().emplace_back(static_cast<int64_t>(s.bytes.size()) + s.offset, 0);
      bytes.Write(s.offset, s.bytes.data(), static_cast<int64_t>(s.bytes.size()));
      source_offsets_.back().push_back(s.offset);
      layout.pieces[i].source = bytes.data() + s.offset;
      pieces.push_back(layout.pieces[i]);
    }
    spans.push_back({begin, static_cast<int64_t>(pieces.size()), layout.digest_offset});
    wires_.emplace_back(layout.wire_bytes);
  }
  return BuildEncodeTable(pieces, spans);
}

void GpuEncoder::Replace(size_t bucket, size_t piece, const std::vector<uint8_t>& bytes) {
  sources_[bucket][piece].Write(source_offsets_[bucket][piece], bytes.data(), static_cast<int64_t>(bytes.size()));
}

void GpuEncoder::Launch() {
  const EncodeDevice device{.records = reinterpret_cast<const EncodeRecord*>(records_.data()),
                            .items = reinterpret_cast<const uint32_t*>(items_.data()),
                            .state = state_.data()};
  EXPECT_CUDA(LaunchEncodeReset(table_, device, streams_[0]));
  EXPECT_CUDA(LaunchAmax(table_, device, streams_[0]));
  streams_.Fork();
  for (size_t k = 0; k < wires_.size(); ++k) {
    const Pace pace = k / 2 % 2 == 0 ? Pace::kFastest : Pace::kBesideTransfer;
    EXPECT_CUDA(LaunchEncode(table_, device, static_cast<int64_t>(k), wires_[k].data(), streams_[k % 2], pace));
  }
  streams_.Join();
}

void GpuEncoder::Poison() {
  state_.Poison();
  for (DeviceBytes& wire : wires_) wire.Poison();
}

std::vector<Image> GpuEncoder::Read() {
  const std::vector<uint8_t> state = state_.Read();
  std::vector<uint64_t> results(static_cast<size_t>(table_.results_bytes()) / 8);
  std::memcpy(results.data(), state.data(), 8 * results.size());
  std::vector<Image> images;
  for (size_t k = 0; k < wires_.size(); ++k) {
    Image& image = images.emplace_back(Image{.wire = wires_[k].Read()});
    for (size_t i = 0; i < sources_[k].size(); ++i) {
      const size_t piece = table_.buckets[k].piece_begin + i;
      image.digests.push_back(results[piece]);
      image.nonfinite.push_back(FirstNonFiniteOf(results[table_.records.size() + piece]));
    }
  }
  return images;
}

std::vector<Image> GpuEncoder::Encode() {
  EXPECT_CUDA(PreloadEncodeKernels());
  Poison();
  Launch();
  return Read();
}

std::vector<Image> GpuEncoder::EncodeByGraph() {
  if (graph_ == nullptr) {
    EXPECT_CUDA(PreloadEncodeKernels());
    cudaGraph_t graph = nullptr;
    EXPECT_CUDA(cudaStreamBeginCapture(streams_[0], cudaStreamCaptureModeGlobal));
    Launch();
    EXPECT_CUDA(cudaStreamEndCapture(streams_[0], &graph));
    EXPECT_CUDA(cudaGraphInstantiate(&graph_, graph, 0));
    cudaGraphDestroy(graph);
  }
  Poison();
  EXPECT_CUDA(cudaGraphLaunch(graph_, streams_[0]));
  return Read();
}

void ExpectSame(const Image& gpu, const Image& host, const std::vector<Source>& sources) {
  const BucketLayout layout = LayOut(sources);
  for (size_t i = 0; i < sources.size(); ++i) {
    EXPECT_EQ(gpu.nonfinite[i], host.nonfinite[i]) << NameOf(sources[i]);
    EXPECT_EQ(gpu.digests[i], host.digests[i]) << NameOf(sources[i]);
    const auto begin = static_cast<size_t>(layout.pieces[i].data_offset);
    const auto end =
        static_cast<size_t>(i + 1 < sources.size() ? layout.pieces[i + 1].data_offset : layout.digest_offset);
    size_t at = begin;
    while (at < end && gpu.wire[at] == host.wire[at]) ++at;
    EXPECT_EQ(at, end) << NameOf(sources[i]) << ": byte " << at - begin << " of " << end - begin;
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(gpu.wire == host.wire) << "digest table or the padding after it";
}

void ExpectHostBytes(const std::vector<std::vector<Source>>& buckets) {
  const std::vector<Image> gpu = GpuEncoder(buckets).Encode(), host = EncodeOnHost(buckets);
  for (size_t k = 0; k < buckets.size(); ++k) ExpectSame(gpu[k], host[k], buckets[k]);
}

std::vector<Recipe> AllRecipes() {
  std::vector<Recipe> recipes;
  for (Granularity g : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    for (ScaleFormat f : {ScaleFormat::kFp32, ScaleFormat::kPow2}) {
      for (Preset p : {Preset::kDefault, Preset::kDeepGemm, Preset::kNemo, Preset::kVerl}) {
        recipes.push_back({.fp8 = true, .granularity = g, .scale_format = f, .preset = p});
      }
    }
  }
  std::erase(recipes, kTritons);
  return recipes;
}

const std::vector<Draw>& Draws() {
  static const std::vector<Draw> draws = {Normal, HeavyTailed, AnyMagnitude, Subnormal, Huge, SignedZero};
  return draws;
}

wsync::testing::Tensor Random(Dtype dtype, int64_t rows, int64_t cols, const Draw& draw, uint32_t seed) {
  std::mt19937 random(seed);
  wsync::testing::Tensor tensor(dtype, rows, cols);
  for (int64_t i = 0; i < rows * cols; ++i) tensor.SetBits(i, wsync::testing::BitsOf(draw(random), dtype));
  return tensor;
}

std::vector<uint8_t> RandomBytes(int64_t count, uint32_t seed, uint8_t mask) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() & mask);
  return bytes;
}

}  // namespace wsync::cuda::testing
