#include "tests/rollout/source_testing.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

namespace wsync {

uint64_t PieceDigest(const Piece& piece, const std::byte* wire) {
  const auto add = [](uint64_t sum, std::byte byte) { return sum * 3 + static_cast<uint64_t>(byte); };
  const uint64_t data =
      std::accumulate(wire + piece.data_offset, wire + piece.data_offset + piece.data_bytes, uint64_t{1}, add);
  return std::accumulate(wire + piece.scale_offset, wire + piece.scale_offset + piece.scale_bytes, data, add);
}

std::vector<std::byte> SourceBucket(const Bucket& bucket, uint64_t version) {
  std::vector<std::byte> bytes(static_cast<size_t>(bucket.wire_bytes));
  for (int64_t i = 0; i < bucket.wire_bytes; ++i) bytes[i] = SourceByte(version, bucket.image_offset + i);
  return bytes;
}

void CopyRows(const ScatterCopy& copy, const std::byte* wire, std::byte* base) {
  for (int64_t row = 0; row < copy.rows; ++row) {
    std::memcpy(base + copy.dest_offset + row * copy.dest_pitch, wire + copy.source_offset + row * copy.source_pitch,
                static_cast<size_t>(copy.row_bytes));
  }
}

std::vector<uint64_t> SourceDigests(const Plan& plan, uint64_t version) {
  std::vector<uint64_t> digests;
  for (const Bucket& bucket : plan.buckets()) {
    const std::vector<std::byte> bytes = SourceBucket(bucket, version);
    for (const Piece& piece : plan.PiecesOf(bucket)) digests.push_back(PieceDigest(piece, bytes.data()));
  }
  return digests;
}

std::vector<Tensor> SmallCatalog(int weights) {
  std::vector<Tensor> tensors = {{"model.norm.weight", Dtype::kBF16, {256}}};
  for (int i = 0; i < weights; ++i) {
    tensors.push_back({absl::StrCat("model.layers.", i, ".mlp.up_proj.weight"), Dtype::kBF16, {256, 256}});
  }
  return tensors;
}

std::shared_ptr<const Plan> PlanOf(std::vector<Tensor> tensors) {
  auto catalog = Catalog::Create(std::move(tensors));
  auto plan = Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), RecipeRules{}, kMinBucketBytes);
  return *std::move(plan);
}

std::vector<Destination> WholeDestinations(const Plan& plan, int64_t* bytes) {
  std::vector<Destination> destinations;
  *bytes = 0;
  for (const Output& output : plan.outputs()) {
    const MatrixView view = ViewOf(Tensor{output.name, output.dtype, output.shape});
    const int64_t pitch = view.cols * DtypeBytes(output.dtype);
    destinations.push_back({output.name, output.dtype, output.shape, 0, view.rows, 0, view.cols, 0, *bytes, pitch});
    *bytes += view.rows * pitch;
  }
  return destinations;
}

std::vector<std::byte> ExpectedMemory(const Plan& plan, uint64_t version) {
  int64_t bytes = 0;
  const std::vector<Destination> destinations = WholeDestinations(plan, &bytes);
  const auto table = BuildScatterTable(plan, destinations, {bytes}, false);
  std::vector<std::byte> memory(static_cast<size_t>(bytes));
  for (size_t k = 0; k < plan.buckets().size(); ++k) {
    const std::vector<std::byte> wire = SourceBucket(plan.buckets()[k], version);
    for (int64_t i = table->bucket_begin[k]; i < table->bucket_begin[k + 1]; ++i) {
      CopyRows(table->copies[i], wire.data(), memory.data());
    }
  }
  return memory;
}

}  // namespace wsync
