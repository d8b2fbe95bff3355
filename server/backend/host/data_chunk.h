// wsync.v1.DataChunk as bytes, without a copy of the payload: written around slices of the sender's memory, read
// straight into the receiver's. Stateless.
#ifndef WSYNC_SERVER_BACKEND_HOST_DATA_CHUNK_H_
#define WSYNC_SERVER_BACKEND_HOST_DATA_CHUNK_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace wsync::host {

// Payload of one chunk: large enough that per-message costs vanish, a quarter of gRPC's 4 MiB default cap, and small
// enough to stay in a core's second-level cache between the kernel's copy and ours.
inline constexpr int64_t kMaxChunkBytes = int64_t{1} << 20;
inline constexpr int64_t kMaxChunkMessageBytes = kMaxChunkBytes + 64;  // with field headers

// Initial metadata of a stream whose sink was let in. Without it a refusal would look like an acceptance until the
// stream's status is there: gRPC reads a response that is only a status as empty initial metadata.
inline constexpr char kAdmittedKey[] = "wsync-admitted";

// REQUIRES: 0 < payload.size() <= kMaxChunkBytes.
grpc::ByteBuffer EncodeChunk(uint64_t sequence, int64_t offset_bytes, const grpc::Slice& payload);

// Where the next chunk has to go: `received` bytes of broadcast `sequence` are at `data` already, of `bytes`.
struct ChunkTarget {
  uint64_t sequence = 0;
  std::byte* data = nullptr;
  int64_t bytes = 0;
  int64_t received = 0;
};

// Writes the payload behind what was received and advances `received`. INVALID_ARGUMENT, saying which field is wrong:
// not a DataChunk, another broadcast's, not the next byte, an empty payload, one above the cap or beyond the end. No
// length is believed before it is checked, and nothing outside data[received, bytes) is written.
absl::Status DecodeChunk(grpc::ByteBuffer* message, ChunkTarget* target);

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_DATA_CHUNK_H_
