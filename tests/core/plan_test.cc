#include "server/core/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <ctime>

#include "kernels/digest.h"
#include "tests/core/plan_testing.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

int64_t RowBytes(const Plan& plan, int64_t tensor) {
  const Tensor& t = plan.catalog().tensors()[tensor];
  return ViewOf(t).cols * (plan.recipes()[tensor].recipe.fp8 ? 1 : DtypeBytes(t.dtype));
}

RC_GTEST_PROP(PlanProperties, EveryRowIsCoveredOnceByPiecesCutAtBlocks, ()) {
  const auto plan = MakePlan(RandomTensors(), RandomRules(), RandomBucketBytes());
  size_t next = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(plan->catalog().tensors().size()); ++i) {
    const Tensor& tensor = plan->catalog().tensors()[i];
    const Recipe& recipe = plan->recipes()[i].recipe;
    const MatrixView view = ViewOf(tensor);
    int64_t row = 0, scales = 0;
    for (; next < plan->pieces().size() && plan->pieces()[next].tensor == i; ++next) {
      const Piece& piece = plan->pieces()[next];
      RC_ASSERT(piece.row_begin == row);
      RC_ASSERT(piece.row_begin % kBlockSize == 0);
      RC_ASSERT(piece.rows > 0);
      RC_ASSERT(piece.data_bytes == piece.rows * RowBytes(*plan, i));
      if (recipe.fp8 && piece.scale_bytes > 0) RC_ASSERT(plan->FirstScaleOf(piece) * 4 == scales);
      row += piece.rows;
      scales += piece.scale_bytes;
    }
    RC_ASSERT(row == (BytesOf(tensor) == 0 ? 0 : view.rows));
    const int64_t grid = ScaleRows(recipe.granularity, view.rows) * ScaleCols(recipe.granularity, view.cols);
    RC_ASSERT(scales == (recipe.fp8 ? grid * 4 : 0));
  }
  RC_ASSERT(next == plan->pieces().size());
}

RC_GTEST_PROP(PlanProperties, PiecesAndDigestTableAreAlignedAndDisjoint, ()) {
  const auto plan = MakePlan(RandomTensors(), RandomRules(), RandomBucketBytes());
  int64_t piece_begin = 0, image_offset = 0, largest = 0, payload = 0;
  for (const Bucket& bucket : plan->buckets()) {
    RC_ASSERT(bucket.piece_begin == piece_begin);
    RC_ASSERT(bucket.piece_end > bucket.piece_begin);
    RC_ASSERT(bucket.image_offset == image_offset);
    int64_t cursor = 0;
    for (const Piece& piece : plan->PiecesOf(bucket)) {
      RC_ASSERT(piece.data_offset % kPieceAlign == 0);
      RC_ASSERT(piece.data_offset >= cursor);
      RC_ASSERT(piece.data_offset - cursor < kPieceAlign);
      RC_ASSERT(piece.scale_offset >= piece.data_offset + piece.data_bytes);
      RC_ASSERT(piece.scale_bytes == 0 || piece.scale_offset % kPieceAlign == 0);
      cursor = piece.scale_offset + piece.scale_bytes;
      payload += piece.data_bytes + piece.scale_bytes;
    }
    RC_ASSERT(bucket.digest_offset % kPieceAlign == 0);
    RC_ASSERT(bucket.digest_offset >= cursor);
    RC_ASSERT(bucket.wire_bytes % kPieceAlign == 0);
    RC_ASSERT(bucket.wire_bytes >= bucket.digest_offset + 8 * (bucket.piece_end - bucket.piece_begin));
    const Piece& first = plan->PiecesOf(bucket).front();
    const bool single_unit = bucket.piece_end - bucket.piece_begin == 1 && first.rows <= kBlockSize;
    RC_ASSERT(bucket.wire_bytes <= plan->bucket_bytes() || single_unit);
    piece_begin = bucket.piece_end;
    image_offset += bucket.wire_bytes;
    largest = std::max(largest, bucket.wire_bytes);
  }
  RC_ASSERT(piece_begin == static_cast<int64_t>(plan->pieces().size()));
  RC_ASSERT(image_offset == plan->image_bytes());
  RC_ASSERT(largest == plan->max_bucket_bytes());
  RC_ASSERT(payload == plan->payload_bytes());
}

// The header's rule, unit by unit: an independent cutter.
class UnitByUnit {
 public:
  explicit UnitByUnit(const Plan& plan) : plan_(plan) {}

  std::vector<std::pair<int64_t, int64_t>> Cut() {  // (tensor, rows) of each piece
    for (int64_t i = 0; i < static_cast<int64_t>(plan_.catalog().tensors().size()); ++i) {
      if (BytesOf(plan_.catalog().tensors()[i]) == 0) continue;
      const int64_t rows = ViewOf(plan_.catalog().tensors()[i]).rows;
      for (int64_t row = 0; row < rows; row += kBlockSize) AddUnit(i, row, std::min(kBlockSize, rows - row));
    }
    return cut_;
  }

 private:
  int64_t Size() const {
    int64_t end = 0;
    for (size_t k = bucket_begin_; k < cut_.size(); ++k) {
      end = RoundUp(end, kPieceAlign) + cut_[k].second * RowBytes(plan_, cut_[k].first);
      if (scales_[k] > 0) end = RoundUp(end, kPieceAlign) + scales_[k];
    }
    return RoundUp(RoundUp(end, kPieceAlign) + 8 * static_cast<int64_t>(cut_.size() - bucket_begin_), kPieceAlign);
  }

  int64_t UnitScales(int64_t tensor, int64_t row, int64_t rows) const {
    const Recipe& recipe = plan_.recipes()[tensor].recipe;
    if (!recipe.fp8) return 0;
    switch (recipe.granularity) {
      case Granularity::kBlock:
        return CeilDiv(ViewOf(plan_.catalog().tensors()[tensor]).cols, kBlockSize) * 4;
      case Granularity::kChannel:
        return rows * 4;
      case Granularity::kTensor:
        return row == 0 ? 4 : 0;
    }
    return 0;
  }

  void AddUnit(int64_t tensor, int64_t row, int64_t rows) {
    const auto saved = std::pair(cut_, scales_);
    if (row > 0 && cut_.size() > bucket_begin_) {
      cut_.back().second += rows;
      scales_.back() += UnitScales(tensor, row, rows);
    } else {
      cut_.emplace_back(tensor, rows);
      scales_.push_back(UnitScales(tensor, row, rows));
    }
    if (Size() <= plan_.bucket_bytes() || saved.first.size() == bucket_begin_) return;
    std::tie(cut_, scales_) = saved;
    bucket_begin_ = cut_.size();
    AddUnit(tensor, row, rows);
  }

  const Plan& plan_;
  std::vector<std::pair<int64_t, int64_t>> cut_;
  std::vector<int64_t> scales_;
  size_t bucket_begin_ = 0;
};

RC_GTEST_PROP(PlanProperties, BucketsTakeAsManyUnitsAsFit, ()) {
  const auto plan = MakePlan(RandomTensors(), RandomRules(), RandomBucketBytes());
  RC_CLASSIFY(plan->buckets().size() > 1, "several buckets");
  RC_CLASSIFY(plan->pieces().size() > plan->catalog().tensors().size(), "cut tensors");
  RC_CLASSIFY(plan->quantized_tensors() > 0, "quantized");
  std::vector<std::pair<int64_t, int64_t>> cut;
  for (const Piece& piece : plan->pieces()) cut.emplace_back(piece.tensor, piece.rows);
  RC_ASSERT(cut == UnitByUnit(*plan).Cut());
}

RC_GTEST_PROP(PlanProperties, SameInputsSameHash, ()) {
  const auto tensors = RandomTensors();
  const auto rules = RandomRules();
  const int64_t bucket_bytes = RandomBucketBytes();
  RC_ASSERT(MakePlan(tensors, rules, bucket_bytes)->hash() == MakePlan(tensors, rules, bucket_bytes)->hash());
}

RC_GTEST_PROP(PlanProperties, AnyChangeOfInputChangesTheHash, ()) {
  auto tensors = RandomTensors();
  auto rules = RandomRules();
  int64_t bucket_bytes = RandomBucketBytes();
  const Hash128 before = MakePlan(tensors, rules, bucket_bytes)->hash();
  Tensor& tensor = tensors[Uniform(0, static_cast<int64_t>(tensors.size()))];
  switch (Uniform(0, 12)) {
    case 0:
      tensor.name += "x";
      break;
    case 1:
      tensor.shape.push_back(1);
      break;
    case 2:
      tensor.dtype = tensor.dtype == Dtype::kBF16 ? Dtype::kF16 : Dtype::kBF16;
      break;
    case 3:
      RC_PRE(tensors.size() > 1u);
      std::swap(tensors.front(), tensors.back());
      break;
    case 4:
      rules.fp8 = !rules.fp8;
      break;
    case 5:
      rules.preset = Preset::kNemo;
      break;
    case 6:
      rules.scale_format = ScaleFormat::kPow2;
      break;
    case 7:
      rules.include.push_back("*.none");
      break;
    case 8:
      rules.exclude.push_back("*.none");
      break;
    case 9:
      rules.modules_to_not_convert.push_back("none");
      break;
    case 10:
      ++(Uniform(0, 2) ? rules.first_layers_bf16 : rules.last_layers_bf16);
      break;
    case 11:
      ++bucket_bytes;
      break;
  }
  RC_ASSERT(MakePlan(tensors, rules, bucket_bytes)->hash() != before);
}

// A digest of any row range that adds up, as the real one does: a sum over the range's rows.
std::vector<uint64_t> AdditiveDigests(const Plan& plan, uint64_t seed) {
  std::vector<uint64_t> digests;
  for (const Piece& piece : plan.pieces()) {
    uint64_t sum = 0;
    for (int64_t row = piece.row_begin; row < piece.row_begin + piece.rows; ++row) {
      sum += DigestMix(seed + piece.tensor, row);
    }
    digests.push_back(sum);
  }
  return digests;
}

RC_GTEST_PROP(PlanProperties, ContentDigestDoesNotDependOnTheBucketSize, ()) {
  const auto tensors = RandomTensors(4);
  const auto rules = RandomRules();
  const uint64_t seed = *rc::gen::arbitrary<uint64_t>();
  const auto a = MakePlan(tensors, rules, RandomBucketBytes());
  const auto b = MakePlan(tensors, rules, kDefaultBucketBytes);
  RC_ASSERT(a->ContentDigest(AdditiveDigests(*a, seed)) == b->ContentDigest(AdditiveDigests(*b, seed)));
  RC_PRE(!a->pieces().empty());
  std::vector<uint64_t> changed = AdditiveDigests(*a, seed);
  ++changed[Uniform(0, static_cast<int64_t>(changed.size()))];
  RC_ASSERT(a->ContentDigest(changed) != a->ContentDigest(AdditiveDigests(*a, seed)));
}

TEST(Plan, ContentDigestSeesMovedContentAndTheRecipe) {
  const std::vector<Tensor> tensors = {{"a.weight", Dtype::kBF16, {128, 128}}, {"b.weight", Dtype::kBF16, {128, 128}}};
  RecipeRules nemo;
  nemo.preset = Preset::kNemo;
  const auto plan = MakePlan(tensors, {}, kMinBucketBytes);
  EXPECT_NE(plan->ContentDigest({1, 2}), plan->ContentDigest({2, 1}));
  EXPECT_NE(plan->ContentDigest({1, 2}), MakePlan(tensors, nemo, kMinBucketBytes)->ContentDigest({1, 2}));
}

std::vector<std::string> OutputsOf(const Plan& plan) {
  std::vector<std::string> texts;
  for (const Output& output : plan.outputs()) {
    texts.push_back(absl::StrCat(output.name, " ", std::string(DtypeName(output.dtype))));
    for (int64_t dim : output.shape) absl::StrAppend(&texts.back(), " ", dim);
  }
  return texts;
}

TEST(Plan, OutputsAreNamedAndShapedByGranularity) {
  const std::vector<Tensor> tensors = {{"norm.weight", Dtype::kBF16, {300}}, {"a.weight", Dtype::kBF16, {300, 129}}};
  RecipeRules rules;
  const auto outputs = [&](Granularity granularity) {
    rules.granularity = granularity;
    return OutputsOf(*MakePlan(tensors, rules, kDefaultBucketBytes));
  };
  EXPECT_THAT(outputs(Granularity::kBlock),
              ElementsAre("norm.weight BF16 300", "a.weight F8_E4M3 300 129", "a.weight_scale_inv F32 3 2"));
  EXPECT_THAT(outputs(Granularity::kChannel),
              ElementsAre("norm.weight BF16 300", "a.weight F8_E4M3 300 129", "a.weight_scale F32 300 1"));
  EXPECT_THAT(outputs(Granularity::kTensor),
              ElementsAre("norm.weight BF16 300", "a.weight F8_E4M3 300 129", "a.weight_scale F32 1"));
  const auto plan = MakePlan(tensors, {}, kDefaultBucketBytes);
  EXPECT_EQ(plan->FindOutput("a.weight_scale_inv"), 2);
  EXPECT_TRUE(plan->outputs()[2].is_scale);
  EXPECT_EQ(plan->outputs()[2].tensor, 1);
  EXPECT_EQ(plan->FindOutput("a.weight_scale"), -1);
  EXPECT_EQ(plan->quantized_tensors(), 1);
  EXPECT_EQ(plan->source_bytes(), 600 + 300 * 129 * 2);
}

TEST(Plan, LaysOneBucketOutAsTheHeaderSays) {
  const auto plan =
      MakePlan({{"a.weight", Dtype::kBF16, {130, 3}}, {"b.bias", Dtype::kBF16, {5}}}, {}, kMinBucketBytes);
  ASSERT_EQ(plan->buckets().size(), 1u);
  const Piece& a = plan->pieces()[0];
  EXPECT_THAT((std::vector{a.data_offset, a.data_bytes, a.scale_offset, a.scale_bytes}), ElementsAre(0, 390, 512, 8));
  const Piece& b = plan->pieces()[1];
  EXPECT_THAT((std::vector{b.data_offset, b.data_bytes, b.scale_offset, b.scale_bytes}), ElementsAre(640, 10, 650, 0));
  EXPECT_EQ(plan->buckets()[0].digest_offset, 768);
  EXPECT_EQ(plan->buckets()[0].wire_bytes, 896);
}

TEST(Plan, TheDigestTableTakesItsShareOfTheBucket) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 600; ++i) tensors.push_back({absl::StrCat("t", i), Dtype::kU8, {kPieceAlign}});
  const auto first_bucket = [&](int64_t bucket_bytes) { return MakePlan(tensors, {}, bucket_bytes)->buckets()[0]; };
  // 16 digests fill 128 bytes: 496 pieces need 496 * 128 + 31 * 128 bytes, one more needs two times 128 more.
  EXPECT_EQ(first_bucket(527 * 128).piece_end, 496);
  EXPECT_EQ(first_bucket(529 * 128 - 1).piece_end, 496);
  EXPECT_EQ(first_bucket(529 * 128).piece_end, 497);
}

TEST(Plan, AUnitLargerThanABucketGetsABucketOfItsOwn) {
  const auto plan = MakePlan({{"small.bias", Dtype::kBF16, {8}},
                              {"wide.bias", Dtype::kBF16, {100'000}},
                              {"wide.weight", Dtype::kBF16, {256, 1000}},
                              {"last.bias", Dtype::kBF16, {8}}},
                             {}, kMinBucketBytes);
  std::vector<int64_t> pieces;
  for (const Bucket& bucket : plan->buckets()) pieces.push_back(bucket.piece_end - bucket.piece_begin);
  EXPECT_THAT(pieces, ElementsAre(1, 1, 1, 1, 1));  // wide.weight twice: its units have 128,000 bytes
  EXPECT_EQ(plan->max_bucket_bytes(), RoundUp(200'000, kPieceAlign) + kPieceAlign);
}

TEST(Plan, TensorsWithoutBytesHaveOutputsButNoPieces) {
  const auto plan =
      MakePlan({{"a.weight", Dtype::kBF16, {0, 128}}, {"b.weight", Dtype::kBF16, {128, 0}}}, {}, kMinBucketBytes);
  EXPECT_TRUE(plan->pieces().empty());
  EXPECT_TRUE(plan->buckets().empty());
  EXPECT_EQ(plan->outputs().size(), 2u);
  EXPECT_EQ(plan->image_bytes(), 0);
}

TEST(Plan, RefusesBadInputs) {
  const auto catalog = MakeCatalog({{"a.weight", Dtype::kBF16, {8, 8}}, {"a.weight_scale_inv", Dtype::kF32, {1, 1}}});
  const auto error = [&](const RecipeRules& rules, int64_t bucket_bytes) {
    const auto plan = Plan::Create(catalog, rules, bucket_bytes);
    if (plan.ok()) return std::string("accepted");
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(plan.status().message());
  };
  EXPECT_THAT(error({}, kMinBucketBytes), HasSubstr("'a.weight' would give scales named 'a.weight_scale_inv'"));
  RecipeRules channel;
  channel.granularity = Granularity::kChannel;
  EXPECT_EQ(error(channel, kMinBucketBytes), "accepted");
  EXPECT_THAT(error(channel, kMinBucketBytes - 1), HasSubstr("65535"));
  EXPECT_THAT(error(channel, kMaxBucketBytes + 1), HasSubstr("outside"));
  channel.exclude = {"["};
  EXPECT_THAT(error(channel, kMinBucketBytes), HasSubstr("glob '['"));
}

// They were made one by one, until there was no memory left.
TEST(Plan, MorePiecesThanAnAgentCanHoldAreRefusedBeforeAnyIsMade) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 100; ++i) tensors.push_back({absl::StrCat("a", i), Dtype::kBF16, {int64_t{1} << 37, 16}});
  const auto plan = Plan::Create(MakeCatalog(std::move(tensors)), {}, kMinBucketBytes);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plan.status().message()), HasSubstr("raise transfer.bucket_bytes"));
}

TEST(Plan, AMillionTensorsTakeSeconds) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 1'000'000; ++i) {
    tensors.push_back({absl::StrCat("model.layers.0.mlp.experts.", i, ".up_proj.weight"), Dtype::kBF16, {128, 128}});
  }
  const std::clock_t begin = std::clock();  // processor time: other tests run beside this one
  const auto plan = MakePlan(std::move(tensors), {}, kDefaultBucketBytes);
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  EXPECT_EQ(plan->pieces().size(), 1'000'000u);
  EXPECT_EQ(plan->quantized_tensors(), 1'000'000);
  RecordProperty("milliseconds", static_cast<int>(seconds * 1e3));
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  EXPECT_LT(seconds, 30);
#else
  EXPECT_LT(seconds, 5);
#endif
}

}  // namespace
}  // namespace wsync
