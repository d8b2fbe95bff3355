#include "server/core/plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

// More than the largest models in the smallest buckets; each takes 80 bytes on every agent.
constexpr int64_t kMaxPieces = int64_t{64} << 20;

constexpr int64_t kScaleBytes = 4;   // fp32
constexpr int64_t kDigestBytes = 8;  // u64

int64_t PieceEnd(const Piece& piece) { return piece.scale_offset + piece.scale_bytes; }

int64_t WireBytes(int64_t payload_end, int64_t pieces) {
  return RoundUp(RoundUp(payload_end, kPieceAlign) + pieces * kDigestBytes, kPieceAlign);
}

// One tensor as it goes over the wire.
struct WireTensor {
  int64_t tensor;
  int64_t rows;
  int64_t cols;
  int64_t row_bytes;
  Recipe recipe;

  int64_t ScaleBytes(int64_t row_begin, int64_t count) const {
    if (!recipe.fp8) return 0;
    if (recipe.granularity == Granularity::kTensor) return row_begin == 0 ? kScaleBytes : 0;
    return ScaleRows(recipe.granularity, count) * ScaleCols(recipe.granularity, cols) * kScaleBytes;
  }

  Piece PieceAt(int64_t row_begin, int64_t count, int64_t cursor) const {
    Piece piece{.tensor = tensor, .row_begin = row_begin, .rows = count};
    piece.data_offset = RoundUp(cursor, kPieceAlign);
    piece.data_bytes = count * row_bytes;
    piece.scale_bytes = ScaleBytes(row_begin, count);
    const int64_t data_end = piece.data_offset + piece.data_bytes;
    piece.scale_offset = piece.scale_bytes > 0 ? RoundUp(data_end, kPieceAlign) : data_end;
    return piece;
  }
};

// Not of it: `allow_infinities`, which decides whether there are bytes to send, and nothing about them.
uint64_t RecipeCode(const Recipe& recipe) {
  if (!recipe.fp8) return 0;
  return uint64_t{1} << 24 | static_cast<uint64_t>(recipe.granularity) << 16 |
         static_cast<uint64_t>(recipe.scale_format) << 8 | static_cast<uint64_t>(recipe.preset);
}

void HashTexts(Hasher& hasher, const std::vector<std::string>& texts) {
  hasher.Add(texts.size());
  for (const std::string& text : texts) hasher.Add(text);
}

void HashRules(Hasher& hasher, const RecipeRules& rules) {
  hasher.Add(rules.fp8);
  hasher.Add(RecipeCode({true, rules.granularity, rules.scale_format, rules.preset}));
  hasher.Add(static_cast<uint64_t>(rules.first_layers_bf16)).Add(static_cast<uint64_t>(rules.last_layers_bf16));
  HashTexts(hasher, rules.include);
  HashTexts(hasher, rules.exclude);
  HashTexts(hasher, rules.modules_to_not_convert);
}

// The layout is hashed too, not only its inputs: two builds that cut differently must not agree.
void HashLayout(Hasher& hasher, const Plan& plan) {
  for (const Piece& p : plan.pieces()) {
    const std::array<int64_t, 8> fields = {
        p.tensor,     p.row_begin,    p.rows,        p.data_offset,
        p.data_bytes, p.scale_offset, p.scale_bytes, static_cast<int64_t>(p.encoding)};
    hasher.AddBytes(fields.data(), sizeof(fields));
  }
  for (const Bucket& b : plan.buckets()) {
    const std::array<int64_t, 7> fields = {b.image_offset,  b.wire_bytes, b.piece_begin, b.piece_end,
                                           b.digest_offset, b.source,     b.sink_set};
    hasher.AddBytes(fields.data(), sizeof(fields));
  }
}

Hash128 HashPlan(const Plan& plan) {
  Hasher hasher;
  hasher.Add(kPlanFormat).Add(static_cast<uint64_t>(plan.bucket_bytes()));
  hasher.Add(plan.catalog().fingerprint().high).Add(plan.catalog().fingerprint().low);
  HashRules(hasher, plan.rules());
  for (const RecipeChoice& choice : plan.recipes()) hasher.Add(RecipeCode(choice.recipe));
  hasher.Add(plan.pieces().size()).Add(plan.buckets().size());
  HashLayout(hasher, plan);
  return hasher.Finish();
}

std::vector<int64_t> ScaleShape(Granularity granularity, const MatrixView& view) {
  if (granularity == Granularity::kTensor) return {1};
  return {ScaleRows(granularity, view.rows), ScaleCols(granularity, view.cols)};
}

}  // namespace

class PlanBuilder {
 public:
  PlanBuilder(std::shared_ptr<const Catalog> catalog, const RecipeRules& rules, int64_t bucket_bytes)
      : plan_(absl::WrapUnique(new Plan)) {
    plan_->recipes_ = ChooseRecipes(*catalog, rules);
    plan_->catalog_ = std::move(catalog);
    plan_->rules_ = rules;
    plan_->bucket_bytes_ = bucket_bytes;
  }

  absl::StatusOr<std::shared_ptr<const Plan>> Build() {
    ListOutputs();
    if (absl::Status status = IndexOutputs(); !status.ok()) return status;
    for (size_t i = 0; i < plan_->recipes_.size(); ++i) Cut(WireTensorAt(static_cast<int64_t>(i)));
    CloseBucket();
    plan_->pieces_.shrink_to_fit();
    plan_->buckets_.shrink_to_fit();
    ListContentTerms();
    plan_->hash_ = HashPlan(*plan_);
    return std::shared_ptr<const Plan>(std::move(plan_));
  }

 private:
  void ListOutputs() {
    plan_->quantized_tensors_ = std::count_if(plan_->recipes_.begin(), plan_->recipes_.end(),
                                              [](const RecipeChoice& choice) { return choice.recipe.fp8; });
    plan_->outputs_.reserve(plan_->recipes_.size() + plan_->quantized_tensors_);
    for (size_t i = 0; i < plan_->recipes_.size(); ++i) {
      const Tensor& tensor = plan_->catalog_->tensors()[i];
      const Recipe& recipe = plan_->recipes_[i].recipe;
      const auto index = static_cast<int64_t>(i);
      plan_->outputs_.push_back({tensor.name, recipe.fp8 ? Dtype::kF8E4M3 : tensor.dtype, tensor.shape, index, false});
      if (!recipe.fp8) continue;
      plan_->outputs_.push_back({ScaleName(tensor.name, recipe.granularity), Dtype::kF32,
                                 ScaleShape(recipe.granularity, ViewOf(tensor)), index, true});
    }
  }

  absl::Status IndexOutputs() {
    plan_->output_index_.reserve(plan_->outputs_.size());
    for (size_t i = 0; i < plan_->outputs_.size(); ++i) {
      const Output& output = plan_->outputs_[i];
      if (plan_->output_index_.emplace(output.name, static_cast<int64_t>(i)).second) continue;
      const Output& other = plan_->outputs_[plan_->output_index_[output.name]];
      const Output& scale = output.is_scale ? output : other;
      return absl::InvalidArgumentError(absl::StrCat(
          "plan: quantizing tensor '", plan_->catalog_->tensors()[scale.tensor].name, "' would give scales named '",
          scale.name, "', but the catalog has a tensor of that name; exclude the weight or drop that tensor"));
    }
    return absl::OkStatus();
  }

  WireTensor WireTensorAt(int64_t index) const {
    const Tensor& tensor = plan_->catalog_->tensors()[index];
    const Recipe& recipe = plan_->recipes_[index].recipe;
    const MatrixView view = ViewOf(tensor);
    return {index, view.rows, view.cols, view.cols * (recipe.fp8 ? 1 : DtypeBytes(tensor.dtype)), recipe};
  }

  void Cut(const WireTensor& tensor) {
    if (tensor.row_bytes == 0) return;
    for (int64_t row = 0; row < tensor.rows;) {
      int64_t rows = FittingRows(tensor, row);
      if (rows == 0) {
        if (!BucketIsEmpty()) {
          CloseBucket();
          continue;
        }
        rows = std::min(kBlockSize, tensor.rows - row);  // one unit larger than a bucket: a bucket of its own
      }
      Append(tensor.PieceAt(row, rows, cursor_));
      row += rows;
    }
  }

  // The most rows from `row` on, in whole units, that the open bucket takes; 0 if not even one unit fits.
  int64_t FittingRows(const WireTensor& tensor, int64_t row) const {
    const int64_t left = tensor.rows - row;
    const auto fits = [&](int64_t rows) {
      const Piece piece = tensor.PieceAt(row, rows, cursor_);
      return WireBytes(PieceEnd(piece), OpenPieces() + 1) <= plan_->bucket_bytes_;
    };
    if (fits(left)) return left;
    int64_t fitting = 0, too_many = CeilDiv(left, kBlockSize);  // units; size grows with rows, so bisect
    while (too_many - fitting > 1) {
      const int64_t middle = fitting + (too_many - fitting) / 2;
      if (fits(middle * kBlockSize)) {
        fitting = middle;
      } else {
        too_many = middle;
      }
    }
    return fitting * kBlockSize;
  }

  void Append(const Piece& piece) {
    plan_->payload_bytes_ += piece.data_bytes + piece.scale_bytes;
    cursor_ = PieceEnd(piece);
    plan_->pieces_.push_back(piece);
  }

  void CloseBucket() {
    if (BucketIsEmpty()) return;
    Bucket bucket{.image_offset = plan_->image_bytes_, .piece_begin = bucket_begin_};
    bucket.piece_end = static_cast<int64_t>(plan_->pieces_.size());
    bucket.digest_offset = RoundUp(cursor_, kPieceAlign);
    bucket.wire_bytes = WireBytes(cursor_, OpenPieces());
    plan_->image_bytes_ += bucket.wire_bytes;
    plan_->max_bucket_bytes_ = std::max(plan_->max_bucket_bytes_, bucket.wire_bytes);
    plan_->buckets_.push_back(bucket);
    bucket_begin_ = bucket.piece_end;
    cursor_ = 0;
  }

  void ListContentTerms() {
    plan_->content_terms_.reserve(plan_->recipes_.size());
    const auto pieces = static_cast<int64_t>(plan_->pieces_.size());
    int64_t next = 0;
    for (size_t i = 0; i < plan_->recipes_.size(); ++i) {
      while (next < pieces && plan_->pieces_[next].tensor == static_cast<int64_t>(i)) ++next;
      plan_->content_terms_.push_back({RecipeCode(plan_->recipes_[i].recipe), next});
    }
  }

  int64_t OpenPieces() const { return static_cast<int64_t>(plan_->pieces_.size()) - bucket_begin_; }
  bool BucketIsEmpty() const { return OpenPieces() == 0; }

  std::unique_ptr<Plan> plan_;
  int64_t bucket_begin_ = 0;  // first piece of the open bucket
  int64_t cursor_ = 0;        // end of its last piece
};

absl::StatusOr<std::shared_ptr<const Plan>> Plan::Create(std::shared_ptr<const Catalog> catalog,
                                                         const RecipeRules& rules, int64_t bucket_bytes) {
  if (absl::Status status = ValidateRules(rules); !status.ok()) return status;
  if (bucket_bytes < kMinBucketBytes || bucket_bytes > kMaxBucketBytes) {
    return absl::InvalidArgumentError(absl::StrCat("plan: a bucket size of ", bucket_bytes, " bytes is outside [",
                                                   kMinBucketBytes, ", ", kMaxBucketBytes, "]; the default is ",
                                                   kDefaultBucketBytes));
  }
  if (catalog->total_bytes() / bucket_bytes > kMaxPieces) {
    return absl::InvalidArgumentError(absl::StrCat("plan: ", catalog->total_bytes(), " bytes of tensors in buckets of ",
                                                   bucket_bytes, " bytes are more than ", kMaxPieces,
                                                   " pieces; raise transfer.bucket_bytes"));
  }
  return PlanBuilder(std::move(catalog), rules, bucket_bytes).Build();
}

int64_t Plan::FindOutput(std::string_view name) const {
  const auto it = output_index_.find(name);
  return it == output_index_.end() ? -1 : it->second;
}

absl::Span<const Piece> Plan::PiecesOf(const Bucket& bucket) const {
  return absl::MakeConstSpan(pieces_).subspan(bucket.piece_begin, bucket.piece_end - bucket.piece_begin);
}

int64_t Plan::FirstScaleOf(const Piece& piece) const {
  const Recipe& recipe = RecipeOf(piece);
  if (recipe.granularity == Granularity::kTensor) return 0;
  const int64_t cols = ViewOf(catalog_->tensors()[piece.tensor]).cols;
  return ScaleRows(recipe.granularity, piece.row_begin) * ScaleCols(recipe.granularity, cols);
}

Hash128 Plan::ContentDigest(absl::Span<const uint64_t> piece_digests) const {
  Hasher hasher;
  hasher.Add(catalog_->fingerprint().high).Add(catalog_->fingerprint().low);
  std::array<uint64_t, 512> fields;  // fed in portions: a call of the hasher costs more than what it does to 8 bytes
  size_t used = 0;
  int64_t next = 0;
  for (const ContentTerm& term : content_terms_) {
    uint64_t sum = 0;
    for (; next < term.piece_end; ++next) sum += piece_digests[next];
    fields[used++] = term.recipe;
    fields[used++] = sum;
    if (used < fields.size()) continue;
    hasher.Add(absl::MakeConstSpan(fields));
    used = 0;
  }
  return hasher.Add(absl::MakeConstSpan(fields).first(used)).Finish();
}

}  // namespace wsync
