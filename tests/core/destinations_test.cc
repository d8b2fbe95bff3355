#include "server/core/destinations.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <chrono>
#include <cstring>
#include <random>

#include "tests/core/plan_testing.h"

namespace wsync {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using Bytes = std::vector<uint8_t>;

constexpr uint8_t kPoison = 0xA5;

MatrixView ViewOfOutput(const Output& output) { return ViewOf({"", output.dtype, output.shape}); }

// The whole of `output` into handle `handle` at `offset`, contiguous.
Destination WholeOf(const Output& output, int32_t handle = 0, int64_t offset = 0) {
  const MatrixView view = ViewOfOutput(output);
  return {output.name, output.dtype, output.shape, 0,      view.rows,
          0,           view.cols,    handle,       offset, std::max<int64_t>(1, view.cols * DtypeBytes(output.dtype))};
}

// An image full of random bytes, and every output's matrix as it lies there, put together piece by piece.
struct World {
  std::shared_ptr<const Plan> plan;
  Bytes image;
  std::vector<Bytes> outputs;
};

World MakeWorld(std::shared_ptr<const Plan> plan, uint32_t seed) {
  World world{plan, Bytes(plan->image_bytes()), {}};
  std::mt19937 random(seed);
  for (uint8_t& byte : world.image) byte = static_cast<uint8_t>(random());
  std::vector<Bytes> data(plan->catalog().tensors().size()), scales(data.size());
  for (const Bucket& bucket : plan->buckets()) {
    for (const Piece& piece : plan->PiecesOf(bucket)) {
      const uint8_t* base = world.image.data() + bucket.image_offset;
      data[piece.tensor].insert(data[piece.tensor].end(), base + piece.data_offset,
                                base + piece.data_offset + piece.data_bytes);
      scales[piece.tensor].insert(scales[piece.tensor].end(), base + piece.scale_offset,
                                  base + piece.scale_offset + piece.scale_bytes);
    }
  }
  for (const Output& output : plan->outputs()) {
    world.outputs.push_back(output.is_scale ? scales[output.tensor] : data[output.tensor]);
  }
  return world;
}

void Execute(const World& world, const ScatterTable& table, std::vector<Bytes>& memory) {
  for (size_t k = 0; k < world.plan->buckets().size(); ++k) {
    const Bucket& bucket = world.plan->buckets()[k];
    for (int64_t i = table.bucket_begin[k]; i < table.bucket_begin[k + 1]; ++i) {
      const ScatterCopy& copy = table.copies[i];
      for (int64_t row = 0; row < copy.rows; ++row) {
        const int64_t from = copy.source_offset + row * copy.source_pitch;
        const int64_t to = copy.dest_offset + row * copy.dest_pitch;
        RC_ASSERT(from >= 0 && from + copy.row_bytes <= bucket.digest_offset);
        RC_ASSERT(to >= 0 && to + copy.row_bytes <= static_cast<int64_t>(memory[copy.handle].size()));
        std::memcpy(memory[copy.handle].data() + to, world.image.data() + bucket.image_offset + from, copy.row_bytes);
      }
    }
  }
}

// What the memory must hold afterwards: each destination's slice taken from the output directly.
void Slice(const World& world, const Destination& d, std::vector<Bytes>& memory) {
  const int64_t index = world.plan->FindOutput(d.output);
  const int64_t element = DtypeBytes(d.dtype);
  const int64_t pitch = ViewOfOutput(world.plan->outputs()[index]).cols * element;
  for (int64_t row = d.row_begin; row < d.row_end; ++row) {
    for (int64_t byte = d.col_begin * element; byte < d.col_end * element; ++byte) {
      memory[d.handle][d.offset_bytes + (row - d.row_begin) * d.row_pitch_bytes + byte - d.col_begin * element] =
          world.outputs[index][row * pitch + byte];
    }
  }
}

// A random slice of `output`, put behind what `memory` holds already, with gaps.
Destination RandomSlice(const Output& output, std::vector<Bytes>& memory) {
  const MatrixView view = ViewOfOutput(output);
  Destination d = WholeOf(output, static_cast<int32_t>(Uniform(0, static_cast<int64_t>(memory.size()))));
  d.row_begin = Uniform(0, view.rows);
  d.row_end = Uniform(d.row_begin + 1, view.rows + 1);
  d.col_begin = Uniform(0, view.cols);
  d.col_end = Uniform(d.col_begin + 1, view.cols + 1);
  const int64_t row_bytes = (d.col_end - d.col_begin) * DtypeBytes(d.dtype);
  d.row_pitch_bytes = row_bytes + *rc::gen::element(0, 0, 1, 64);
  Bytes& bytes = memory[d.handle];
  d.offset_bytes = static_cast<int64_t>(bytes.size()) + *rc::gen::element(0, 3);
  bytes.resize(d.offset_bytes + (d.row_end - d.row_begin - 1) * d.row_pitch_bytes + row_bytes, kPoison);
  return d;
}

RC_GTEST_PROP(DestinationProperties, CopiesGiveWhatDirectSlicingGives, ()) {
  const World world = MakeWorld(MakePlan(RandomTensors(5), RandomRules(), RandomBucketBytes()), 7);
  std::vector<Bytes> memory(2);
  std::vector<Destination> destinations;
  for (const Output& output : world.plan->outputs()) {
    const MatrixView view = ViewOfOutput(output);
    if (view.rows == 0 || view.cols == 0) continue;
    for (int64_t copies = Uniform(0, 3); copies > 0; --copies) {
      destinations.push_back(RandomSlice(output, memory));
    }
  }
  const std::vector<int64_t> sizes = {static_cast<int64_t>(memory[0].size()), static_cast<int64_t>(memory[1].size())};
  const auto table = BuildScatterTable(*world.plan, destinations, sizes, /*allow_partial=*/true);
  RC_ASSERT(table.ok());
  std::vector<Bytes> expected = memory;
  int64_t bytes = 0;
  for (const Destination& d : destinations) {
    Slice(world, d, expected);
    bytes += (d.row_end - d.row_begin) * (d.col_end - d.col_begin) * DtypeBytes(d.dtype);
  }
  Execute(world, *table, memory);
  RC_ASSERT(memory == expected);
  RC_ASSERT(table->bytes == bytes);
}

constexpr int64_t kSide = 24;  // of the little matrix that overlap tests slice

std::shared_ptr<const Plan> LittlePlan() { return MakePlan({{"t", Dtype::kU8, {kSide, kSide}}}, {}, kMinBucketBytes); }

Destination RandomRectangle(int64_t pitch) {
  Destination d{"t", Dtype::kU8, {kSide, kSide}};
  d.row_end = Uniform(1, 6);
  d.col_end = Uniform(1, pitch + 1);
  d.offset_bytes = Uniform(0, 80);
  d.row_pitch_bytes = pitch;
  return d;
}

bool ReallyOverlap(const std::vector<Destination>& destinations) {
  std::vector<bool> used(1000, false);
  for (const Destination& d : destinations) {
    for (int64_t row = 0; row < d.row_end; ++row) {
      for (int64_t col = 0; col < d.col_end; ++col) {
        auto bit = used[d.offset_bytes + row * d.row_pitch_bytes + col];
        if (bit) return true;
        bit = true;
      }
    }
  }
  return false;
}

RC_GTEST_PROP(DestinationProperties, OverlapIsExactForEqualPitch, ()) {
  const int64_t pitch = Uniform(1, 16);
  std::vector<Destination> destinations(Uniform(2, 5));
  for (Destination& d : destinations) d = RandomRectangle(pitch);
  const bool accepted = BuildScatterTable(*LittlePlan(), destinations, {1000}, true).ok();
  RC_TAG(accepted);
  RC_ASSERT(accepted != ReallyOverlap(destinations));
}

RC_GTEST_PROP(DestinationProperties, NoRealOverlapIsAcceptedWhateverThePitches, ()) {
  std::vector<Destination> destinations(Uniform(2, 5));
  for (Destination& d : destinations) d = RandomRectangle(Uniform(1, 16));
  if (ReallyOverlap(destinations)) RC_ASSERT(!BuildScatterTable(*LittlePlan(), destinations, {1000}, true).ok());
}

TEST(Destinations, ColumnShardsOfOneFusedMatrixMayInterleave) {
  const auto plan =
      MakePlan({{"a.weight", Dtype::kBF16, {256, 128}}, {"b.weight", Dtype::kBF16, {256, 256}}}, {}, kMinBucketBytes);
  Destination a = WholeOf(plan->outputs()[plan->FindOutput("a.weight")]);
  Destination b = WholeOf(plan->outputs()[plan->FindOutput("b.weight")], 0, 128);
  a.row_pitch_bytes = b.row_pitch_bytes = 384;
  EXPECT_TRUE(BuildScatterTable(*plan, {a, b}, {256 * 384}, true).ok());
  b.offset_bytes = 127;
  const auto table = BuildScatterTable(*plan, {a, b}, {256 * 384}, true);
  EXPECT_THAT(std::string(table.status().message()),
              HasSubstr("'b.weight': its memory at offset 127 of handle 0 overlaps that of 'a.weight' at offset 0"));
}

TEST(Destinations, WhatIsContiguousOnBothSidesIsOneRow) {
  const auto plan = MakePlan({{"a.weight", Dtype::kBF16, {200, 256}}}, {}, kMinBucketBytes);
  const auto table =
      BuildScatterTable(*plan, {WholeOf(plan->outputs()[0]), WholeOf(plan->outputs()[1], 1)}, {200 * 256, 16}, false);
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->copies.size(), 2u);
  EXPECT_EQ(table->copies[0].rows, 1);
  EXPECT_EQ(table->copies[0].row_bytes, 200 * 256);
  EXPECT_EQ(table->copies[1].source_offset, plan->pieces()[0].scale_offset);
  EXPECT_EQ(table->bytes, 200 * 256 + 16);
}

class BadDestinations : public ::testing::Test {
 protected:
  std::string ErrorOf(const std::vector<Destination>& destinations, bool allow_partial = true) const {
    const auto table = BuildScatterTable(*plan_, destinations, {kBytes}, allow_partial);
    if (table.ok()) return "accepted";
    EXPECT_EQ(table.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(table.status().message());
  }
  template <typename Change>
  std::string ErrorAfter(Change change) const {
    Destination d = good_;
    change(d);
    return ErrorOf({d});
  }

  static constexpr int64_t kBytes = 200 * 100;
  std::shared_ptr<const Plan> plan_ =
      MakePlan({{"a.weight", Dtype::kBF16, {200, 100}}, {"empty.weight", Dtype::kBF16, {0, 4}}}, {}, kMinBucketBytes);
  Destination good_ = WholeOf(plan_->outputs()[0]);
};

TEST_F(BadDestinations, AreRefusedWithTheReason) {
  EXPECT_EQ(ErrorOf({good_}), "accepted");
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.output = "nope"; }), HasSubstr("'nope': the plan sends no tensor"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.dtype = Dtype::kBF16; }),
              HasSubstr("'a.weight': the plan sends F8_E4M3, the engine holds BF16"));
  EXPECT_THAT(ErrorAfter([](Destination& d) {
                d.shape = {100, 200};
              }),
              HasSubstr("the plan sends shape [200, 100], the engine expects [100, 200]"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.row_end = 201; }), HasSubstr("outside the tensor's 200 x 100"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.col_begin = -1; }), HasSubstr("outside"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.row_begin = 5, d.row_end = 4; }), HasSubstr("outside"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.row_begin = INT64_MIN; }), HasSubstr("outside"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.row_end = 0; }), HasSubstr("take nothing"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.row_pitch_bytes = 99; }), HasSubstr("smaller than a row of 100"));
}

TEST_F(BadDestinations, MemoryOutsideTheHandleIsRefusedEvenWhereSumsWouldOverflow) {
  for (int64_t offset : {int64_t{1}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
    EXPECT_THAT(ErrorAfter([&](Destination& d) { d.offset_bytes = offset; }), HasSubstr("do not fit")) << offset;
  }
  for (int64_t pitch : {int64_t{101}, INT64_MAX}) {
    EXPECT_THAT(ErrorAfter([&](Destination& d) { d.row_pitch_bytes = pitch; }), HasSubstr("do not fit")) << pitch;
  }
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.handle = 1; }), HasSubstr("handle 1 is unknown; 1 were given"));
  EXPECT_THAT(ErrorAfter([](Destination& d) { d.handle = -1; }), HasSubstr("handle -1 is unknown"));
}

TEST_F(BadDestinations, OutputsNobodyTakesAreNamedUnlessPartialIsAllowed) {
  EXPECT_THAT(ErrorOf({good_}, /*allow_partial=*/false),
              AllOf(HasSubstr("1 problem "), HasSubstr("'a.weight_scale_inv': no destination takes it (F32 [2, 1])"),
                    Not(HasSubstr("empty.weight"))));
  EXPECT_EQ(ErrorOf({good_}, /*allow_partial=*/true), "accepted");
}

TEST_F(BadDestinations, TheListIsCutAtTwentyButCountsAll) {
  std::vector<Destination> destinations;
  for (int i = 0; i < 25; ++i) {
    destinations.push_back(good_);
    destinations.back().output = absl::StrCat("nope", i);
  }
  EXPECT_THAT(ErrorOf(destinations), AllOf(HasSubstr("25 problems"), HasSubstr("'nope19'"), Not(HasSubstr("'nope20'")),
                                           HasSubstr("and 5 more")));
}

// 18,867 x 2 destinations of a mixture-of-experts engine: gate and up of every expert fused into one stacked tensor.
TEST(Destinations, StackedExpertsAreFast) {
  constexpr int kExperts = 18'000;
  std::vector<Tensor> tensors;
  for (int i = 0; i < kExperts; ++i) {
    tensors.push_back({absl::StrCat("mlp.experts.", i, ".gate_proj.weight"), Dtype::kBF16, {768, 2048}});
  }
  tensors.push_back({"stacked", Dtype::kBF16, {kExperts, 128, 64}});
  const auto plan = MakePlan(std::move(tensors), {}, int64_t{16} << 20);
  std::vector<Destination> destinations;
  std::vector<int64_t> handles = {0, 0, 0};
  for (const Output& output : plan->outputs()) {
    const int32_t handle = output.name == "stacked" ? 2 : output.is_scale;
    const int64_t parts = handle == 2 ? kExperts : 2;  // one destination per expert, or two halves
    const Destination whole = WholeOf(output, handle, handles[handle]);
    for (int64_t part = 0; part < parts; ++part) {
      Destination d = whole;
      d.row_begin = whole.row_end * part / parts;
      d.row_end = whole.row_end * (part + 1) / parts;
      d.offset_bytes += d.row_begin * d.row_pitch_bytes;
      destinations.push_back(d);
    }
    handles[handle] += whole.row_end * whole.row_pitch_bytes;
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto table = BuildScatterTable(*plan, destinations, handles, false);
  const auto took = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->bytes, plan->payload_bytes());
  RecordProperty("milliseconds", static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
  EXPECT_LT(took, std::chrono::seconds(5));  // well under one in a release build
}

}  // namespace
}  // namespace wsync
