// The plan: which bytes lie where on the wire. A pure function of (catalog, recipe rules, bucket size) that both sides
// compute and compare by hash before any byte moves.
//
// Tensors are taken in catalog order and cut into pieces: row ranges that begin at a multiple of kBlockSize rows, so
// no quantization block and no scale is ever split. Pieces fill buckets in order; a bucket closes when the next unit
// (128 rows with their scales) does not fit. One bucket's bytes, offsets relative to the bucket, all zero-padded:
//
//     piece 0 data | piece 0 scales | piece 1 data | ... | digest table: one u64 per piece, little endian
//     ^ kPieceAlign  ^ kPieceAlign                         ^ kPieceAlign
//
// A piece without scales takes no room for them. A bucket takes as many units as fit, padding and digest table counted.
// A single unit larger than the bucket size makes a bucket of its own, as large as it must be (max_bucket_bytes); a
// [n] tensor is one row and so one unit. Tensors without bytes have outputs but no pieces.
// Immutable; safe to share between threads.
#ifndef WSYNC_SERVER_CORE_PLAN_H_
#define WSYNC_SERVER_CORE_PLAN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/core/catalog.h"
#include "server/core/hash.h"
#include "server/core/recipe.h"

namespace wsync {

inline constexpr int64_t kPieceAlign = 128;  // bytes; vector loads and GPU sectors never straddle
inline constexpr int64_t kDefaultBucketBytes = int64_t{256} << 20;  // NCCL reaches its plateau here
inline constexpr int64_t kMinBucketBytes = int64_t{64} << 10;
inline constexpr int64_t kMaxBucketBytes = int64_t{8} << 30;
inline constexpr uint64_t kPlanFormat = 1;  // part of the hash: bump when the layout changes

enum class PieceEncoding : uint8_t { kFull = 1 };  // deltas will be a second value

// One tensor's row range within a bucket.
struct Piece {
  int64_t tensor = 0;     // index into the catalog
  int64_t row_begin = 0;  // of the tensor's MatrixView; a multiple of kBlockSize
  int64_t rows = 0;
  int64_t data_offset = 0;   // bytes from the start of the bucket
  int64_t data_bytes = 0;    // rows * cols * (1 if fp8 else DtypeBytes)
  int64_t scale_offset = 0;  // with 0 bytes of scales: the end of the data
  int64_t scale_bytes = 0;   // for Granularity::kTensor only the piece with row 0 carries the scale
  PieceEncoding encoding = PieceEncoding::kFull;
};

struct Bucket {
  int64_t image_offset = 0;  // where the bucket lies when all buckets are kept in one image
  int64_t wire_bytes = 0;    // with padding and digest table; a multiple of kPieceAlign
  int64_t piece_begin = 0;   // pieces [piece_begin, piece_end)
  int64_t piece_end = 0;
  int64_t digest_offset = 0;  // of the digest table, from the start of the bucket
  int32_t source = 0;         // who sends it (rank of the root); one source today
  int32_t sink_set = 0;       // who takes it; set 0 is every sink, the only one today
};

// What arrives: an output tensor as engines and files name it. A quantized X.weight gives two of these; scale shapes
// are [ceil(rows/128), ceil(cols/128)] (block), [rows, 1] (channel), [1] (tensor).
struct Output {
  std::string name;
  Dtype dtype = Dtype::kF8E4M3;
  std::vector<int64_t> shape;
  int64_t tensor = 0;     // catalog index it comes from
  bool is_scale = false;  // the scales of `tensor` rather than its data
};

class Plan {
 public:
  // INVALID_ARGUMENT: bad rules, bucket_bytes outside [kMinBucketBytes, kMaxBucketBytes] or far too small, a name of
  // scales that the catalog has already. Time and memory are O(tensors + pieces): 1,000,000 tensors take seconds.
  static absl::StatusOr<std::shared_ptr<const Plan>> Create(std::shared_ptr<const Catalog> catalog,
                                                            const RecipeRules& rules, int64_t bucket_bytes);

  const Catalog& catalog() const { return *catalog_; }
  const RecipeRules& rules() const { return rules_; }
  int64_t bucket_bytes() const { return bucket_bytes_; }
  const std::vector<RecipeChoice>& recipes() const { return recipes_; }  // per catalog tensor
  const std::vector<Piece>& pieces() const { return pieces_; }           // in wire order
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const std::vector<Output>& outputs() const { return outputs_; }  // data then scales, in catalog order
  int64_t FindOutput(std::string_view name) const;                 // index into outputs(), or -1

  absl::Span<const Piece> PiecesOf(const Bucket& bucket) const;
  const Recipe& RecipeOf(const Piece& piece) const { return recipes_[piece.tensor].recipe; }
  // Position in the tensor's scale grid of the piece's first scale (see digest.h). REQUIRES: RecipeOf(piece).fp8.
  int64_t FirstScaleOf(const Piece& piece) const;

  int64_t image_bytes() const { return image_bytes_; }            // all buckets: what `full` and `staged` keep
  int64_t max_bucket_bytes() const { return max_bucket_bytes_; }  // what a ring slot needs
  int64_t payload_bytes() const { return payload_bytes_; }        // data and scales, without padding and digests
  int64_t source_bytes() const { return catalog_->total_bytes(); }
  int64_t quantized_tensors() const { return quantized_tensors_; }
  Hash128 hash() const { return hash_; }  // of inputs, recipes and layout: equal hashes mean equal bytes on the wire

  // The version's content digest from the digests of all pieces, in wire order: pieces are summed per tensor and the
  // sums hashed with the catalog's fingerprint and the recipes, so bucket size does not change it.
  // Allocates nothing that grows with the tensors. REQUIRES: piece_digests.size() == pieces().size().
  Hash128 ContentDigest(absl::Span<const uint64_t> piece_digests) const;

 private:
  Plan() = default;
  friend class PlanBuilder;
  std::shared_ptr<const Catalog> catalog_;
  RecipeRules rules_;
  int64_t bucket_bytes_ = 0;
  std::vector<RecipeChoice> recipes_;
  std::vector<Piece> pieces_;
  std::vector<Bucket> buckets_;
  std::vector<Output> outputs_;
  absl::flat_hash_map<std::string_view, int64_t> output_index_;
  // What ContentDigest wants of each tensor, by itself: it runs for every version, while sinks wait.
  struct ContentTerm {
    uint64_t recipe = 0;    // RecipeCode
    int64_t piece_end = 0;  // its pieces end here, and begin where the tensor's before it end
  };
  std::vector<ContentTerm> content_terms_;
  int64_t image_bytes_ = 0;
  int64_t max_bucket_bytes_ = 0;
  int64_t payload_bytes_ = 0;
  int64_t quantized_tensors_ = 0;
  Hash128 hash_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_PLAN_H_
