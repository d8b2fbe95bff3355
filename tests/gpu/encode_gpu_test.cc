// The encode kernels against their host twins, byte for byte: codes, scales, digests, padding, first non-finite index.
#include <cstdlib>

#include "gpu_testing.h"
#include "kernels/digest.h"

namespace wsync::cuda {
namespace {

using namespace wsync::cuda::testing;  // NOLINT: the vocabulary of this file
using wsync::testing::Tensor;

constexpr Dtype kQuantizable[] = {Dtype::kBF16, Dtype::kF16, Dtype::kF32};
constexpr Granularity kGranularities[] = {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor};

class EncodeGpuTest : public GpuTest {};

// Every piece gets an amax slot of its own.
void Append(std::vector<Source>& sources, Source source) {
  source.amax_slot = static_cast<int64_t>(sources.size());
  sources.push_back(std::move(source));
}

TEST_F(EncodeGpuTest, GivesTheHostsBytesForAllRecipesDtypesAndNumbers) {
  for (int64_t cols : {136, 135}) {
    std::vector<Source> sources;
    for (Dtype dtype : kQuantizable) {
      for (const Draw& draw : Draws()) {
        const Tensor tensor = Random(dtype, Small() ? 3 : 130, cols, draw);
        for (const Recipe& recipe : AllRecipes()) Append(sources, SourceOf(tensor, recipe));
      }
    }
    ExpectHostBytes({sources});
  }
}

// Scales are the host's; where Triton's 1/s is a step off, a code that lay between two may be the other one.
TEST_F(EncodeGpuTest, TritonsArithmeticIsWithinAStepOfTheHosts) {
  std::vector<Source> sources;
  for (Dtype dtype : kQuantizable) {
    for (const Draw& draw : Draws()) Append(sources, SourceOf(Random(dtype, 130, 264, draw), kTritons));
  }
  const Image gpu = GpuEncoder({sources}).Encode()[0], host = EncodeOnHost({sources})[0];
  const BucketLayout layout = LayOut(sources);
  for (size_t i = 0; i < sources.size(); ++i) {
    const CheckPiece piece = CheckPieceOf(layout.pieces[i]);
    const auto data = static_cast<size_t>(piece.data_offset), scales = static_cast<size_t>(piece.scale_offset);
    for (size_t at = data; at < data + static_cast<size_t>(piece.rows * piece.row_bytes); ++at) {
      ASSERT_LE(std::abs(gpu.wire[at] - host.wire[at]), 1) << NameOf(sources[i]) << " code " << at - data;
    }
    EXPECT_EQ(std::memcmp(&gpu.wire[scales], &host.wire[scales], 4 * static_cast<size_t>(piece.scale_count)), 0);
    const auto* const wire = reinterpret_cast<const std::byte*>(gpu.wire.data());
    EXPECT_EQ(gpu.digests[i], DigestRows(wire + data, 0, piece.rows, piece.row_bytes, piece.row_bytes) +
                                  DigestScales(wire + scales, 0, piece.scale_count));
  }
}

TEST_F(EncodeGpuTest, GivesTheHostsBytesForAwkwardShapes) {
  const std::pair<int64_t, int64_t> shapes[] = {
      {1, 1},     {1, 7},     {7, 1},      {3, 64},  {127, 129},  {129, 127},   {128, 128}, {257, 33},  {2, 1024},
      {2, 1025},  {1, 9000},  {129, 1152}, {300, 3}, {128, 192},  {5, 16384},   {3, 16392}, {40, 520},  {1000, 8},
      {333, 264}, {2, 40001}, {64, 2048},  {17, 24}, {260, 4096}, {129, 18944}, {1, 128},   {256, 1000}};
  std::vector<Source> sources;
  for (const auto& [rows, cols] : shapes) {
    for (Dtype dtype : kQuantizable) {
      const Tensor tensor = Random(dtype, rows, cols, Draws()[1]);
      for (Granularity g : kGranularities) Append(sources, SourceOf(tensor, {.fp8 = true, .granularity = g}));
      Append(sources, SourceOf(tensor, {}));
    }
  }
  ExpectHostBytes({sources});
}

TEST_F(EncodeGpuTest, TakesSourcesAtAnyNaturalAlignment) {
  std::vector<Source> sources;
  for (Dtype dtype : kQuantizable) {
    for (int64_t offset = DtypeBytes(dtype); offset <= 16; offset += DtypeBytes(dtype)) {
      const Tensor tensor = Random(dtype, 140, 264, Draws()[0]);
      for (Granularity g : kGranularities) {
        Append(sources, SourceOf(tensor, {.fp8 = true, .granularity = g}));
        sources.back().offset = offset;
      }
      Append(sources, SourceOf(tensor, {}));
      sources.back().offset = offset;
    }
  }
  ExpectHostBytes({sources});
}

TEST_F(EncodeGpuTest, CopiesRawBytesOfEveryDtypeAndShape) {
  std::vector<Source> sources;
  for (int number = 1; number <= 15; ++number) {
    const auto dtype = static_cast<Dtype>(number);
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                                     {3, 5},
                                     {1, 100001},
                                     {300, 77},
                                     {2, 65536},
                                     {1, 16},
                                     {3, 8},
                                     {1, 262144},
                                     {5, 24}}) {
      for (int64_t offset : {int64_t{0}, DtypeBytes(dtype)}) {
        Source source{.dtype = dtype, .row_begin = 11, .rows = rows, .cols = cols, .offset = offset};
        source.bytes = RandomBytes(rows * cols * DtypeBytes(dtype), static_cast<uint32_t>(number), 0x3F);
        sources.push_back(source);
      }
    }
  }
  ExpectHostBytes({sources});
}

TEST_F(EncodeGpuTest, PiecesOfATensorAddUpToItsDigestWhereverItWasCut) {
  const Tensor tensor = Random(Dtype::kBF16, 700, 336, Draws()[1]);
  for (const Recipe& recipe : AllRecipes()) {
    const Source whole = SourceOf(tensor, recipe);
    const std::vector<std::vector<Source>> buckets = {{RowsOf(whole, 0, 128), RowsOf(whole, 128, 384)},
                                                      {RowsOf(whole, 384, 700)}};
    const std::vector<Image> gpu = GpuEncoder(buckets).Encode(), host = EncodeOnHost(buckets);
    for (size_t k = 0; k < buckets.size(); ++k) ExpectSame(gpu[k], host[k], buckets[k]);
    const Image one = EncodeOnHost({{whole}})[0];
    EXPECT_EQ(gpu[0].digests[0] + gpu[0].digests[1] + gpu[1].digests[0], one.digests[0]) << NameOf(whole);
  }
}

// More items than blocks fit on the device at once, of all kinds.
TEST_F(EncodeGpuTest, GivesTheHostsBytesForLargeBuckets) {
  const int64_t rows = Small() ? 512 : 4096;
  const Source fp8 = SourceOf(Random(Dtype::kBF16, rows, 4224, Draws()[0]), {.fp8 = true});
  Source raw = fp8;
  raw.recipe = {};
  std::vector<Source> sources;
  for (int round = 0; round < 4; ++round) {
    Append(sources, fp8);
    Append(sources, SourceOf(Random(Dtype::kBF16, 1, 1024 + 3 * round, Draws()[0]), {}));
    Append(sources, RowsOf(raw, 128 * round, rows));
    Append(sources, SourceOf(Random(Dtype::kF16, 130, 136, Draws()[1]), {.fp8 = true}));
    Append(sources, SourceOf(Random(Dtype::kF32, 130, 136, Draws()[1]), {.fp8 = true}));
  }
  ExpectHostBytes({sources, sources});
}

TEST_F(EncodeGpuTest, EncodesThousandsOfSmallPiecesInOneBucket) {
  std::mt19937 random(7);
  const std::vector<Recipe> recipes = AllRecipes();
  std::vector<Source> sources;
  for (uint32_t i = 0; i < (Small() ? 300 : 3000); ++i) {
    const int64_t rows = 1 + random() % 200, cols = random() % 3 == 0 ? 1 + random() % 300 : 8 * (1 + random() % 40);
    const Tensor tensor = Random(kQuantizable[random() % 3], rows, cols, Draws()[0], i);
    Append(sources, SourceOf(tensor, random() % 4 == 0 ? Recipe{} : recipes[random() % recipes.size()]));
  }
  ExpectHostBytes({sources});
}

TEST_F(EncodeGpuTest, NamesTheFirstNonFiniteElementWhereverItIs) {
  struct Bad {
    Dtype dtype;
    uint64_t bits;
  };
  const Bad bads[] = {{Dtype::kBF16, 0x7F80},
                      {Dtype::kBF16, 0xFFC1},
                      {Dtype::kF16, 0xFC00},
                      {Dtype::kF16, 0x7C01},
                      {Dtype::kF32, 0xFF800000},
                      {Dtype::kF32, 0x7F800001},
                      {Dtype::kF8E4M3, 0xFF},
                      {Dtype::kF8E5M2, 0x7C},
                      {Dtype::kF8E8M0, 0xFF},
                      {Dtype::kC64, 0x00000000FF800000},
                      {Dtype::kC64, 0x7FC0000000000000},
                      {Dtype::kF64, 0x7FF0000000000001},
                      {Dtype::kF64, 0xFFF0000000000000}};
  for (int64_t cols : {272, 269}) {
    for (const Bad& bad : bads) {
      std::vector<Source> sources;
      const int64_t rows = 131, bytes = DtypeBytes(bad.dtype);
      for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{127}, int64_t{128}, cols - 1, cols, 127 * cols,
                               128 * cols, 60 * cols + 140, 130 * cols + 200, rows * cols - 1}) {
        Source source{.dtype = bad.dtype, .row_begin = 256, .rows = rows, .cols = cols};
        source.bytes = RandomBytes(rows * cols * bytes, 3, 0x3B);
        for (int64_t at : {position, rows * cols - 1}) {
          std::memcpy(source.bytes.data() + at * bytes, &bad.bits, static_cast<size_t>(bytes));
        }
        Append(sources, source);
        if (!IsQuantizable(bad.dtype)) continue;
        for (Granularity g : kGranularities) {
          source.recipe = {.fp8 = true, .granularity = g};
          Append(sources, source);
        }
      }
      const std::vector<Image> gpu = GpuEncoder({sources}).Encode(), host = EncodeOnHost({sources});
      for (size_t i = 0; i < sources.size(); ++i) {
        EXPECT_NE(host[0].nonfinite[i], kNoIndex);
        EXPECT_EQ(gpu[0].nonfinite[i], host[0].nonfinite[i]) << NameOf(sources[i]);
      }
    }
  }
}

// Masks and unset clips: infinities everywhere, with and without a NaN among them.
TEST_F(EncodeGpuTest, AllowedInfinitiesPassAsTheyAreAndNaNBehindThemIsStillFound) {
  struct Infinite {
    Dtype dtype;
    uint64_t infinity, nan;
  };
  for (const Infinite& test : {Infinite{Dtype::kBF16, 0xFF80, 0x7F81},
                               {Dtype::kF16, 0x7C00, 0xFC01},
                               {Dtype::kF32, 0xFF800000, 0x7F800001},
                               {Dtype::kF64, 0x7FF0000000000000, 0x7FF0000000000001},
                               {Dtype::kF8E5M2, 0x7C, 0xFD},
                               {Dtype::kF8E8M0, 0x7F, 0xFF},
                               {Dtype::kC64, 0x7F80000000000000, 0xFF8000007F800001}}) {
    std::vector<Source> sources;
    const int64_t bytes = DtypeBytes(test.dtype);
    for (const int64_t cols : {272, 269}) {
      Source source{
          .dtype = test.dtype, .recipe = {.allow_infinities = true}, .row_begin = 256, .rows = 131, .cols = cols};
      source.bytes.resize(static_cast<size_t>(source.rows * cols * bytes));
      for (int64_t i = 0; i < source.rows * cols; ++i) {
        std::memcpy(source.bytes.data() + i * bytes, &test.infinity, static_cast<size_t>(bytes));
      }
      Append(sources, source);
      for (const int64_t at : {int64_t{0}, cols - 1, 60 * cols + 140, source.rows * cols - 1}) {
        Source bad = source;
        std::memcpy(bad.bytes.data() + at * bytes, &test.nan, static_cast<size_t>(bytes));
        Append(sources, bad);
      }
    }
    const Image gpu = GpuEncoder({sources}).Encode()[0], host = EncodeOnHost({sources})[0];
    EXPECT_EQ(gpu.nonfinite, host.nonfinite) << DtypeName(test.dtype);
    for (const size_t whole : {0, 5}) {
      EXPECT_EQ(gpu.nonfinite[whole], kNoIndex) << DtypeName(test.dtype);
      EXPECT_EQ(gpu.digests[whole], host.digests[whole]) << DtypeName(test.dtype);
    }
  }
}

TEST_F(EncodeGpuTest, ABadPieceDoesNotTouchItsNeighbours) {
  std::vector<Source> sources;
  for (int i = 0; i < 3; ++i) Append(sources, SourceOf(Random(Dtype::kBF16, 256, 256, Draws()[0]), {.fp8 = true}));
  std::vector<uint8_t> bad = sources[1].bytes;
  bad[2 * 777] = 0x80, bad[2 * 777 + 1] = 0x7F;
  GpuEncoder encoder({sources});
  encoder.Replace(0, 1, bad);
  const Image gpu = encoder.Encode()[0], host = EncodeOnHost({sources})[0];
  EXPECT_EQ(gpu.nonfinite, (std::vector<int64_t>{kNoIndex, 777, kNoIndex}));
  for (size_t i : {0, 2}) EXPECT_EQ(gpu.digests[i], host.digests[i]);
}

// The second version is smaller in every number: what the first left would show.
void ExpectTheNextVersionIsRight(std::vector<Image> (GpuEncoder::*encode)()) {
  std::vector<std::vector<Source>> buckets(3);
  for (auto& sources : buckets) {
    for (Granularity g : kGranularities) {
      Append(sources, SourceOf(Random(Dtype::kBF16, 300, 264, Draws()[4]), {.fp8 = true, .granularity = g}));
    }
    Append(sources, SourceOf(Random(Dtype::kF32, 30, 263, Draws()[4]), {.fp8 = true}));
  }
  GpuEncoder encoder(buckets);
  (encoder.*encode)();
  for (size_t k = 0; k < buckets.size(); ++k) {
    for (size_t i = 0; i < buckets[k].size(); ++i) {
      Source& s = buckets[k][i];
      s.bytes = SourceOf(Random(s.dtype, s.rows, s.cols, Draws()[0], 2 + static_cast<uint32_t>(k)), {}).bytes;
      encoder.Replace(k, i, s.bytes);
    }
  }
  const std::vector<Image> gpu = (encoder.*encode)(), host = EncodeOnHost(buckets);
  for (size_t k = 0; k < buckets.size(); ++k) ExpectSame(gpu[k], host[k], buckets[k]);
}
TEST_F(EncodeGpuTest, TheNextVersionStartsAfresh) { ExpectTheNextVersionIsRight(&GpuEncoder::Encode); }
TEST_F(EncodeGpuTest, AVersionIsAGraphOfLaunchesThatNeitherWaitNorAllocate) {
  ExpectTheNextVersionIsRight(&GpuEncoder::EncodeByGraph);
}

}  // namespace
}  // namespace wsync::cuda
