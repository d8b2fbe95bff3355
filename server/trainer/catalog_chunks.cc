#include "server/trainer/catalog_chunks.h"

#include <grpcpp/support/slice.h>

#include <string>

#include "server/rpc/convert.h"

namespace wsync {
namespace {

// Half of gRPC's 4 MiB message cap: what is estimated low still fits.
constexpr size_t kChunkBytes = size_t{2} << 20;
constexpr size_t kTensorOverhead = 32;  // tags, lengths and dtype around name and shape
constexpr size_t kDimensionBytes = 10;  // the longest varint

size_t WireSizeOf(const Tensor& tensor) {
  return tensor.name.size() + kTensorOverhead + kDimensionBytes * tensor.shape.size();
}

}  // namespace

grpc::ByteBuffer Serialize(const v1::CoordinatorMessage& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

CatalogMessages MakeCatalogMessages(const Plan* plan) {
  CatalogMessages result;
  std::vector<grpc::ByteBuffer>& chunks = result.chunks;
  v1::CoordinatorMessage message;
  v1::CatalogChunk* chunk = message.mutable_catalog();
  chunk->set_first(true);
  if (plan == nullptr) {
    chunk->set_last(true);
    chunks.push_back(Serialize(message));
    return result;
  }
  result.plan_hash = plan->hash();
  *chunk->mutable_rules() = ToProto(plan->rules());
  chunk->set_bucket_bytes(plan->bucket_bytes());
  size_t bytes = chunk->ByteSizeLong();
  for (const Tensor& tensor : plan->catalog().tensors()) {
    if (bytes + WireSizeOf(tensor) > kChunkBytes) {
      chunks.push_back(Serialize(message));
      message.Clear();
      chunk = message.mutable_catalog();
      bytes = 0;
    }
    *chunk->add_tensors() = ToProto(tensor);
    bytes += WireSizeOf(tensor);
  }
  chunk->set_last(true);
  *chunk->mutable_catalog_fingerprint() = ToProto(plan->catalog().fingerprint());
  *chunk->mutable_plan_hash() = ToProto(plan->hash());
  chunks.push_back(Serialize(message));
  return result;
}

}  // namespace wsync
