// The catalog as members get it: CatalogChunk messages under 2 MiB, serialised once and shared by every stream.
#ifndef WSYNC_SERVER_TRAINER_CATALOG_CHUNKS_H_
#define WSYNC_SERVER_TRAINER_CATALOG_CHUNKS_H_

#include <grpcpp/support/byte_buffer.h>

#include <vector>

#include "server/core/plan.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

// As the stream of Member wants it. The bytes are shared by copies of the buffer.
grpc::ByteBuffer Serialize(const v1::CoordinatorMessage& message);

struct CatalogMessages {
  std::vector<grpc::ByteBuffer> chunks;
  Hash128 plan_hash;  // zero: no plan
};
// Null: the one empty chunk that says "there is no plan".
CatalogMessages MakeCatalogMessages(const Plan* plan);

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_CATALOG_CHUNKS_H_
