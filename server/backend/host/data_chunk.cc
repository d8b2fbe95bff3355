#include "server/backend/host/data_chunk.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "wsync/v1/data_plane.pb.h"

namespace wsync::host {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr uint32_t kSequenceTag =
    WireFormatLite::MakeTag(v1::DataChunk::kSequenceFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kOffsetTag =
    WireFormatLite::MakeTag(v1::DataChunk::kOffsetBytesFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kPayloadTag =
    WireFormatLite::MakeTag(v1::DataChunk::kPayloadFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
constexpr size_t kMaxHeaderBytes = 3 * 5 + 2 * 10 + 5;  // three tags, two 64-bit numbers, one length

absl::Status Malformed(const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("malformed data chunk: ", why));
}

struct Header {
  uint64_t sequence = 0;
  uint64_t offset = 0;
  uint32_t payload_bytes = 0;
};

// Reads up to the payload, which comes last: that is how this program writes chunks, and protobuf's own writers too.
absl::Status ReadHeader(CodedInputStream& in, Header* header) {
  while (true) {
    const uint32_t tag = in.ReadTag();
    if (tag == kPayloadTag) {
      if (!in.ReadVarint32(&header->payload_bytes)) return Malformed("cut off in the payload's length");
      return absl::OkStatus();
    }
    if (tag != kSequenceTag && tag != kOffsetTag) return Malformed(absl::StrCat("unexpected field tag ", tag));
    uint64_t* value = tag == kSequenceTag ? &header->sequence : &header->offset;
    if (!in.ReadVarint64(value)) return Malformed("cut off in its header");
  }
}

absl::Status CheckHeader(const Header& header, const ChunkTarget& target) {
  if (header.sequence != target.sequence) {
    return Malformed(absl::StrCat("of broadcast ", header.sequence, " while broadcast ", target.sequence,
                                  " is at byte ", target.received, " of ", target.bytes,
                                  "; do both ranks use the same plan?"));
  }
  if (header.offset != static_cast<uint64_t>(target.received)) {
    return Malformed(absl::StrCat("at byte ", header.offset, " of broadcast ", target.sequence, ", expected byte ",
                                  target.received));
  }
  const int64_t most = std::min(kMaxChunkBytes, target.bytes - target.received);
  if (header.payload_bytes == 0 || header.payload_bytes > most) {
    return Malformed(absl::StrCat("payload of ", header.payload_bytes, " bytes at byte ", target.received,
                                  " of broadcast ", target.sequence, ", which may take 1 to ", most));
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ByteBuffer EncodeChunk(uint64_t sequence, int64_t offset_bytes, const grpc::Slice& payload) {
  uint8_t header[kMaxHeaderBytes];
  uint8_t* end = header;
  end = CodedOutputStream::WriteTagToArray(kSequenceTag, end);
  end = CodedOutputStream::WriteVarint64ToArray(sequence, end);
  end = CodedOutputStream::WriteTagToArray(kOffsetTag, end);
  end = CodedOutputStream::WriteVarint64ToArray(static_cast<uint64_t>(offset_bytes), end);
  end = CodedOutputStream::WriteTagToArray(kPayloadTag, end);
  end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(payload.size()), end);
  const grpc::Slice slices[] = {grpc::Slice(header, static_cast<size_t>(end - header)), payload};
  return grpc::ByteBuffer(slices, 2);
}

absl::Status DecodeChunk(grpc::ByteBuffer* message, ChunkTarget* target) {
  grpc::ProtoBufferReader reader(message);
  if (!reader.status().ok()) return Malformed("cannot be read");
  CodedInputStream in(&reader);
  Header header;
  if (absl::Status status = ReadHeader(in, &header); !status.ok()) return status;
  if (absl::Status status = CheckHeader(header, *target); !status.ok()) return status;
  if (!in.ReadRaw(target->data + target->received, static_cast<int>(header.payload_bytes))) {
    return Malformed(absl::StrCat("cut off in its payload of ", header.payload_bytes, " bytes"));
  }
  if (in.ReadTag() != 0 || !in.ConsumedEntireMessage()) return Malformed("bytes after the payload");
  target->received += header.payload_bytes;
  return absl::OkStatus();
}

}  // namespace wsync::host
