#include "server/backend/host/data_chunk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "wsync/v1/data_plane.pb.h"

namespace wsync::host {
namespace {

using testing::HasSubstr;

grpc::ByteBuffer ToBuffer(const std::string& bytes, size_t slice_bytes = 1 << 20) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += slice_bytes) slices.emplace_back(bytes.substr(at, slice_bytes));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

std::string Message(uint64_t sequence, uint64_t offset, const std::string& payload) {
  v1::DataChunk chunk;
  chunk.set_sequence(sequence);
  chunk.set_offset_bytes(offset);
  chunk.set_payload(payload);
  return chunk.SerializeAsString();
}

// A broadcast of 1000 bytes, number 3, of which 100 are there; memory around it is watched.
class DataChunkTest : public testing::Test {
 protected:
  absl::Status Decode(const std::string& message, size_t slice_bytes = 1 << 20) {
    grpc::ByteBuffer buffer = ToBuffer(message, slice_bytes);
    return DecodeChunk(&buffer, &target_);
  }
  void ExpectRefused(const std::string& message, const std::string& why) {
    const absl::Status status = Decode(message);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_EQ(target_.received, 100);
  }

  std::vector<std::byte> memory_ = std::vector<std::byte>(1200, std::byte{0xEE});
  ChunkTarget target_{.sequence = 3, .data = memory_.data() + 100, .bytes = 1000, .received = 100};
};

TEST_F(DataChunkTest, WhatIsEncodedIsTheProtobufMessage) {
  const std::string payload = "seven bytes and more";
  const grpc::ByteBuffer encoded = EncodeChunk(uint64_t{1} << 40, 123'456'789'012, grpc::Slice(payload));
  v1::DataChunk chunk;
  ASSERT_TRUE(chunk.ParseFromString(ToString(encoded)));
  EXPECT_EQ(chunk.sequence(), uint64_t{1} << 40);
  EXPECT_EQ(chunk.offset_bytes(), 123'456'789'012u);
  EXPECT_EQ(chunk.payload(), payload);
}

TEST_F(DataChunkTest, TheLargestChunkFitsTheMessageCap) {
  const std::string payload(kMaxChunkBytes, 'x');
  EXPECT_LE(EncodeChunk(~uint64_t{0}, int64_t{1} << 62, grpc::Slice(payload)).Length(),
            static_cast<size_t>(kMaxChunkMessageBytes));
}

TEST_F(DataChunkTest, APayloadLandsBehindWhatWasReceivedHoweverItIsSliced) {
  for (const size_t slice_bytes : {1, 2, 7, 1000}) {
    target_.received = 100;
    std::string payload;
    for (int i = 0; i < 300; ++i) payload.push_back(static_cast<char>(i * 7 + static_cast<int>(slice_bytes)));
    ASSERT_TRUE(Decode(Message(3, 100, payload), slice_bytes).ok());
    EXPECT_EQ(target_.received, 400);
    EXPECT_EQ(std::memcmp(memory_.data() + 200, payload.data(), 300), 0);
    EXPECT_EQ(memory_[199], std::byte{0xEE});
    EXPECT_EQ(memory_[500], std::byte{0xEE});
  }
}

TEST_F(DataChunkTest, ChunksOutOfPlaceAreRefusedSayingWhere) {
  ExpectRefused(Message(4, 100, "x"), "of broadcast 4 while broadcast 3");
  ExpectRefused(Message(2, 100, "x"), "of broadcast 2");
  ExpectRefused(Message(3, 101, "x"), "expected byte 100");
  ExpectRefused(Message(3, 0, "x"), "at byte 0");
  ExpectRefused(Message(3, ~uint64_t{0}, "x"), "expected byte 100");
}

TEST_F(DataChunkTest, PayloadsThatAreEmptyOrReachBeyondTheEndAreRefused) {
  ExpectRefused(Message(3, 100, std::string(901, 'x')), "payload of 901 bytes");
  ExpectRefused(std::string("\x08\x03\x10\x64\x1a\x00", 6), "payload of 0 bytes");
  EXPECT_TRUE(Decode(Message(3, 100, std::string(900, 'x'))).ok());
  EXPECT_EQ(memory_[1100], std::byte{0xEE});
}

TEST_F(DataChunkTest, APayloadAboveTheCapIsRefusedEvenWhereItFits) {
  std::vector<std::byte> large(3 * kMaxChunkBytes);
  target_ = {.sequence = 3, .data = large.data(), .bytes = 3 * kMaxChunkBytes, .received = 100};
  ExpectRefused(Message(3, 100, std::string(kMaxChunkBytes + 1, 'x')), "which may take 1 to 1048576");
}

TEST_F(DataChunkTest, LengthsThatLieAreRefused) {
  ExpectRefused(std::string("\x08\x03\x10\x64\x1a\x05xyz", 9), "cut off in its payload of 5 bytes");
  ExpectRefused(std::string("\x08\x03\x10\x64\x1a\xff\xff\xff\xff\x0f", 10), "payload of 4294967295 bytes");
  ExpectRefused(Message(3, 100, "abc") + "trailing", "bytes after the payload");
  ExpectRefused(Message(3, 100, "abc") + std::string(1, '\0'), "bytes after the payload");
}

TEST_F(DataChunkTest, WhatIsNoDataChunkIsRefused) {
  ExpectRefused("", "unexpected field tag 0");
  ExpectRefused("\x08", "cut off in its header");
  ExpectRefused("\x1a", "payload's length");
  ExpectRefused("\x22\x01x", "unexpected field tag 34");
  ExpectRefused("\x0d\x01\x02\x03\x04", "unexpected field tag 13");
}

TEST_F(DataChunkTest, RandomBytesNeverWriteOutsideTheTarget) {
  std::mt19937 random(11);
  const std::string good = Message(3, 100, std::string(800, 'p'));
  for (int i = 0; i < 20'000; ++i) {
    std::string message = good.substr(0, random() % (good.size() + 1));
    for (int flips = static_cast<int>(random() % 4); flips > 0 && !message.empty(); --flips) {
      message[random() % std::min<size_t>(message.size(), 12)] = static_cast<char>(random());
    }
    target_.received = 100;
    Decode(message, 1 + random() % 64).IgnoreError();
    ASSERT_LE(target_.received, target_.bytes);
  }
  for (int i = 0; i < 200; ++i) EXPECT_EQ(memory_[i], std::byte{0xEE});
  for (int i = 1100; i < 1200; ++i) EXPECT_EQ(memory_[i], std::byte{0xEE});
}

}  // namespace
}  // namespace wsync::host
