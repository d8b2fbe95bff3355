// The sink's kernels: the digest check accepts what the encoder wrote and nothing else; copies land where they should.
#include <algorithm>
#include <cstring>

#include "gpu_testing.h"

namespace wsync::cuda {
namespace {

using namespace wsync::cuda::testing;  // NOLINT: the vocabulary of this file
using wsync::testing::Tensor;

class LoadGpuTest : public GpuTest {};

// Fast and slow pieces of all kinds.
std::vector<Source> MixedSources() {
  std::vector<Source> sources;
  const std::pair<int64_t, int64_t> shapes[] = {{130, 136}, {300, 77}, {1, 100001}, {700, 1000}, {3, 5}, {512, 2048}};
  for (const auto& [rows, cols] : shapes) {
    const Tensor tensor = Random(Dtype::kBF16, rows, cols, Draws()[0]);
    sources.push_back(SourceOf(tensor, {}));
    for (Granularity g : {Granularity::kBlock, Granularity::kChannel}) {
      sources.push_back(SourceOf(tensor, {.fp8 = true, .granularity = g}));
      sources.back().row_begin = 256;
    }
  }
  return sources;
}

// A received bucket: host-encoded bytes on the device, and what checks them.
class Received {
 public:
  explicit Received(const std::vector<std::vector<Source>>& buckets)
      : images_(EncodeOnHost(buckets)),
        table_(TableOf(buckets)),
        records_(DeviceBytes::Of(table_.records)),
        items_(DeviceBytes::Of(table_.items)),
        state_(table_.state_bytes()) {
    for (const Image& image : images_) wires_.emplace_back(image.wire);
  }
  int64_t wire_bytes(size_t bucket) const { return wires_[bucket].size(); }
  const std::byte* wire(size_t bucket) const { return wires_[bucket].data(); }
  const Mismatches* Guard(size_t bucket) const { return MismatchesOf(table_, Device(), static_cast<int64_t>(bucket)); }

  const Image& image(size_t bucket) const { return images_[bucket]; }
  const CheckTable& table() const { return table_; }
  void FlipBit(size_t bucket, int64_t bit) {
    uint8_t& byte = images_[bucket].wire[static_cast<size_t>(bit / 8)];
    byte = static_cast<uint8_t>(byte ^ 1 << bit % 8);
    wires_[bucket].Write(bit / 8, &byte, 1);
  }

  void LaunchReset(cudaStream_t stream) { EXPECT_CUDA(LaunchCheckReset(table_, Device(), stream)); }
  void Launch(size_t bucket, cudaStream_t stream) {
    EXPECT_CUDA(LaunchCheck(table_, Device(), static_cast<int64_t>(bucket), wires_[bucket].data(), stream));
  }
  // Mismatches per bucket; fills the digests by piece. Buckets alternate between two streams.
  std::vector<Mismatches> Check(std::vector<uint64_t>* digests = nullptr) {
    state_.Poison();
    LaunchReset(streams_[0]);
    streams_.Fork();
    for (size_t k = 0; k < wires_.size(); ++k) Launch(k, streams_[k % 2]);
    streams_.Join();
    const std::vector<uint8_t> state = state_.Read();
    if (digests != nullptr) {
      digests->resize(table_.records.size());
      std::memcpy(digests->data(), state.data(), 8 * digests->size());
    }
    std::vector<Mismatches> mismatches(wires_.size());
    std::memcpy(mismatches.data(), state.data() + table_.mismatches_offset(0), sizeof(Mismatches) * wires_.size());
    return mismatches;
  }

 private:
  CheckDevice Device() const {
    return {.records = reinterpret_cast<const CheckRecord*>(records_.data()),
            .items = reinterpret_cast<const uint32_t*>(items_.data()),
            .state = state_.data()};
  }
  static CheckTable TableOf(const std::vector<std::vector<Source>>& buckets) {
    std::vector<CheckPiece> pieces;
    std::vector<CheckBucket> spans;
    for (const auto& sources : buckets) {
      const BucketLayout layout = LayOut(sources);
      const auto begin = static_cast<int64_t>(pieces.size());
      for (const EncodePiece& piece : layout.pieces) pieces.push_back(CheckPieceOf(piece));
      spans.push_back({begin, static_cast<int64_t>(pieces.size()), layout.digest_offset});
    }
    return BuildCheckTable(pieces, spans);
  }

  std::vector<Image> images_;
  CheckTable table_;
  DeviceBytes records_, items_, state_;
  std::vector<DeviceBytes> wires_;
  Streams streams_;
};

TEST_F(LoadGpuTest, TheCheckGivesTheHostsDigestsAndAcceptsThem) {
  Received received({MixedSources(), MixedSources()});
  std::vector<uint64_t> digests;
  for (const Mismatches& m : received.Check(&digests)) EXPECT_EQ(m.count, 0);
  std::vector<uint64_t> expected = received.image(0).digests;
  expected.insert(expected.end(), received.image(1).digests.begin(), received.image(1).digests.end());
  EXPECT_EQ(digests, expected);
}

TEST_F(LoadGpuTest, TheCheckNamesThePieceOfEveryFlippedBit) {
  const std::vector<Source> sources = MixedSources();
  const BucketLayout layout = LayOut(sources);
  Received received({sources, sources});
  std::mt19937_64 random(5);
  for (uint32_t i = 0; i < sources.size(); ++i) {
    const CheckPiece piece = CheckPieceOf(layout.pieces[i]);
    const int64_t data_bits = 8 * piece.rows * piece.row_bytes, scale_bits = 32 * piece.scale_count;
    std::vector<int64_t> bits = {8 * piece.data_offset, 8 * piece.data_offset + data_bits - 1,
                                 8 * (layout.digest_offset + 8 * i) + 63};
    for (int n = 0; n < (Small() ? 1 : 8); ++n)
      bits.push_back(8 * piece.data_offset + static_cast<int64_t>(random() % data_bits));
    for (int n = 0; n < 4 && scale_bits > 0; ++n) {
      bits.push_back(8 * piece.scale_offset + static_cast<int64_t>(random() % scale_bits));
    }
    for (int64_t bit : bits) {
      received.FlipBit(1, bit);
      const std::vector<Mismatches> mismatches = received.Check();
      received.FlipBit(1, bit);
      EXPECT_EQ(mismatches[0].count, 0);
      ASSERT_EQ(mismatches[1].count, 1) << NameOf(sources[i]) << " bit " << bit;
      EXPECT_EQ(mismatches[1].pieces[0], sources.size() + i) << bit;
    }
  }
  EXPECT_EQ(received.Check()[1].count, 0);
}

TEST_F(LoadGpuTest, TheCheckCountsMoreMismatchesThanItLists) {
  std::vector<Source> sources;
  for (uint32_t i = 0; i < 50; ++i) sources.push_back(SourceOf(Random(Dtype::kBF16, 2, 8, Draws()[0], i), {}));
  Received received({sources});
  for (int64_t i = 0; i < 50; ++i) received.FlipBit(0, 8 * kWireAlign * i);
  EXPECT_EQ(received.Check()[0].count, 50);
}

// As in place: no host between check and copy, which stand in a graph.
TEST_F(LoadGpuTest, AGuardedCopyWritesNothingOfABadBucket) {
  const std::vector<std::vector<Source>> buckets(3, MixedSources());
  Received received(buckets);
  const int64_t bytes = received.wire_bytes(0);
  DeviceBytes dest(3 * bytes);
  std::vector<Copy> copies;
  for (int64_t k = 0; k < 3; ++k) copies.push_back({0, bytes, dest.data() + k * bytes, bytes, 1, bytes});
  const CopyTable table =
      BuildCopyTable(copies, std::vector<int64_t>{0, 1, 2, 3}, std::vector<int64_t>{0, bytes, 2 * bytes});
  const DeviceBytes records = DeviceBytes::Of(table.records), items = DeviceBytes::Of(table.items);
  const CopyDevice device{.records = reinterpret_cast<const CopyRecord*>(records.data()),
                          .items = reinterpret_cast<const uint32_t*>(items.data())};
  Streams streams;
  EXPECT_CUDA(PreloadCheckKernels());
  EXPECT_CUDA(PreloadCopyKernels());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t version = nullptr;
  ASSERT_CUDA(cudaStreamBeginCapture(streams[0], cudaStreamCaptureModeGlobal));
  received.LaunchReset(streams[0]);
  for (size_t k = 0; k < 3; ++k) {
    received.Launch(k, streams[0]);
    EXPECT_CUDA(
        LaunchCopyBucket(table, device, static_cast<int64_t>(k), received.wire(k), streams[0], received.Guard(k)));
  }
  ASSERT_CUDA(cudaStreamEndCapture(streams[0], &graph));
  ASSERT_CUDA(cudaGraphInstantiate(&version, graph, 0));
  for (size_t bad : {1, 0, 2}) {
    received.FlipBit(bad, 77777);
    dest.Poison();
    EXPECT_CUDA(cudaGraphLaunch(version, streams[0]));
    const std::vector<uint8_t> got = dest.Read();
    for (size_t k = 0; k < 3; ++k) {
      const auto begin = got.begin() + static_cast<int64_t>(k) * bytes;
      const std::vector<uint8_t> expected =
          k == bad ? std::vector<uint8_t>(static_cast<size_t>(bytes), kPoison) : received.image(k).wire;
      EXPECT_TRUE(std::equal(begin, begin + bytes, expected.begin()))
          << "bucket " << k << " while " << bad << " is bad";
    }
    received.FlipBit(bad, 77777);
  }
  cudaGraphExecDestroy(version);
  cudaGraphDestroy(graph);
}

// Copies from two buckets to a destination, and the same copies on the host.
class Scatter {
 public:
  Scatter(const std::vector<int64_t>& bucket_bytes, int64_t dest_bytes)
      : dest_(dest_bytes), expected_(static_cast<size_t>(dest_bytes), kPoison), bucket_begin_{0} {
    for (int64_t bytes : bucket_bytes) {
      image_offsets_.push_back(static_cast<int64_t>(image_.size()));
      const std::vector<uint8_t> bucket = RandomBytes(bytes, static_cast<uint32_t>(bytes));
      image_.insert(image_.end(), bucket.begin(), bucket.end());
      image_.resize(static_cast<size_t>(RoundUp(static_cast<int64_t>(image_.size()), kWireAlign)));
    }
  }
  void Add(int64_t source, int64_t source_pitch, int64_t dest, int64_t dest_pitch, int64_t rows, int64_t row_bytes) {
    copies_.push_back({source, source_pitch, dest_.data() + dest, dest_pitch, rows, row_bytes});
    const int64_t bucket = image_offsets_[bucket_begin_.size() - 1];
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(image_.begin() + bucket + source + r * source_pitch, row_bytes,
                  expected_.begin() + dest + r * dest_pitch);
    }
  }
  void EndBucket() { bucket_begin_.push_back(static_cast<int64_t>(copies_.size())); }

  void ExpectRightBytes(bool bucket_by_bucket) {
    const CopyTable table = BuildCopyTable(copies_, bucket_begin_, image_offsets_);
    const DeviceBytes image(image_), records = DeviceBytes::Of(table.records), items = DeviceBytes::Of(table.items);
    const CopyDevice device{.records = reinterpret_cast<const CopyRecord*>(records.data()),
                            .items = reinterpret_cast<const uint32_t*>(items.data())};
    const std::vector<uint8_t> blank(expected_.size(), kPoison);
    dest_.Write(0, blank.data(), dest_.size());
    for (size_t k = 0; k < image_offsets_.size() && bucket_by_bucket; ++k) {
      EXPECT_CUDA(LaunchCopyBucket(table, device, static_cast<int64_t>(k), image.data() + image_offsets_[k], nullptr));
    }
    if (!bucket_by_bucket) {
      EXPECT_CUDA(LaunchCopyAll(table, device, image.data(), nullptr));
    }
    const std::vector<uint8_t> got = dest_.Read();
    const auto differing = std::mismatch(got.begin(), got.end(), expected_.begin());
    EXPECT_TRUE(differing.first == got.end()) << "byte " << differing.first - got.begin();
  }

 private:
  DeviceBytes dest_;
  std::vector<uint8_t> image_, expected_;
  std::vector<int64_t> image_offsets_, bucket_begin_;
  std::vector<Copy> copies_;
};

TEST_F(LoadGpuTest, CopiesWholeRowsAndColumnRangesAsTheHostDoes) {
  Scatter scatter({4 << 20, 300000}, 8 << 20);
  int64_t dest = 0;
  const auto add = [&](int64_t source, int64_t source_pitch, int64_t dest_pitch, int64_t rows, int64_t row_bytes) {
    scatter.Add(source, source_pitch, dest, dest_pitch, rows, row_bytes);
    dest += RoundUp(rows * dest_pitch, 256);
  };
  add(0, 4096, 4096, 200, 4096);        // contiguous on both sides
  add(4096, 3584, 7168, 300, 3584);     // rows into a fused matrix
  add(128, 7168, 1792, 301, 1792);      // a column range
  add(256, 100000, 100016, 3, 100000);  // rows longer than an item
  add(512, 1000, 1000, 1, 1000);        // one row, no multiple of 16
  add(512, 70001, 70001, 1, 70001);     // the same, long: split
  add(64, 112, 56, 28, 56);             // scales: 8 bytes at a time
  add(4, 28, 12, 9, 12);                // 4
  add(2, 254, 254, 77, 127 * 2);        // 2, contiguous
  add(3, 129, 131, 77, 100);            // 1
  add(0, 16, 32, 5000, 16);             // many short rows
  scatter.EndBucket();
  add(16, 2048, 2048, 100, 2048);
  add(250000, 49999, 49999, 1, 49999);
  scatter.EndBucket();
  scatter.ExpectRightBytes(/*bucket_by_bucket=*/false);
  scatter.ExpectRightBytes(/*bucket_by_bucket=*/true);
}

TEST_F(LoadGpuTest, RandomCopiesGiveTheHostsBytes) {
  std::mt19937 random(11);
  for (int round = 0; round < (Small() ? 2 : 10); ++round) {
    Scatter scatter({1 << 20, 1 << 20}, 16 << 20);
    int64_t dest = 0;
    for (int bucket = 0; bucket < 2; ++bucket) {
      for (int i = 0; i < 60; ++i) {
        const int64_t unit = int64_t{1} << random() % 5;
        const int64_t rows = 1 + random() % 64, row_bytes = unit * (1 + random() % 64);
        const int64_t source_pitch = row_bytes + unit * (random() % 3), dest_pitch = row_bytes + unit * (random() % 3);
        const int64_t source = unit * (random() % ((1 << 20) / unit - rows * source_pitch / unit));
        scatter.Add(source, source_pitch, dest, dest_pitch, rows, row_bytes);
        dest = RoundUp(dest + rows * dest_pitch, unit) + unit * (random() % 2);
        dest = RoundUp(dest, 16);
      }
      scatter.EndBucket();
    }
    scatter.ExpectRightBytes(round % 2 == 0);
  }
}

}  // namespace
}  // namespace wsync::cuda
