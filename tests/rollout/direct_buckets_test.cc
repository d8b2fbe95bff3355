// Buckets that are received straight into live memory: which ones, that every byte ends up where it belongs and none
// beside it, and what a damaged one leaves. On the host backend, with a wire that is a copy.
#include "server/rollout/direct_buckets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "server/core/ring.h"
#include "server/rollout/receive_pipeline.h"
#include "tests/backend/contract/encoded_model.h"
#include "tests/backend/host_agent.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::IsNull;
using ::testing::Not;

constexpr std::byte kPoison{0xA5};
constexpr int32_t kSlots = 2;
constexpr int64_t kGuardBytes = 4096;  // around each tensor, and nobody's

// Gives the buckets of one image, and remembers where they were wanted. What it may not write over yet is given after
// its `after`, as a device would.
class CopyingTransport final : public Transport {
 public:
  explicit CopyingTransport(const std::vector<std::byte>* image) : image_(image) {}
  absl::Status Connect(absl::Time) override { return absl::OkStatus(); }
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    if (after != nullptr) (void)after->Wait(absl::InfiniteFuture());
    std::memcpy(data, image_->data() + next_, static_cast<size_t>(bytes));
    if (static_cast<int64_t>(places.size()) == corrupt) data[bytes / 2] ^= std::byte{1};
    next_ = (next_ + bytes) % static_cast<int64_t>(image_->size());
    places.push_back(data);
    return nullptr;
  }
  void Cancel(const absl::Status&) override {}
  int64_t moved_bytes() const override { return next_; }

  std::vector<std::byte*> places;
  int64_t corrupt = -1;  // this bucket

 private:
  const std::vector<std::byte>* const image_;
  int64_t next_ = 0;
};

class DirectBucketsTest : public ::testing::Test {
 protected:
  // An embedding of 14 buckets and a bit, quantized weights, another tensor that is not quantized, a norm.
  DirectBucketsTest()
      : model_({{"model.embed_tokens.weight", Dtype::kBF16, {1900, 128}},
                {"model.layers.0.mlp.up_proj.weight", Dtype::kBF16, {700, 256}},
                {"lm_head.weight", Dtype::kBF16, {1900, 128}},
                {"model.norm.weight", Dtype::kBF16, {128}}},
               {}),
        backend_({.threads = 2}) {
    image_ = model_.EncodeImage(&digests_);
    Place(0);
  }
  const Plan& plan() const { return *model_.plan(); }

  // Lays the outputs out with a guard around each, `shift` bytes off their alignment.
  void Place(int64_t shift) {
    destinations_ = WholeDestinations(plan(), &bytes_);
    bytes_ = kGuardBytes + shift;
    for (Destination& destination : destinations_) {
      destination.offset_bytes = bytes_;
      bytes_ += destination.row_end * destination.row_pitch_bytes;
      bytes_ = RoundUp(bytes_, kGuardBytes) + kGuardBytes + shift;
    }
    engine_ = *backend_.memory().Allocate(bytes_, "an engine");
    std::memset(engine_->data(), static_cast<int>(kPoison), static_cast<size_t>(bytes_));
  }
  ScatterTable Table() {
    auto table = BuildScatterTable(plan(), destinations_, {bytes_}, /*allow_partial=*/true);
    EXPECT_TRUE(table.ok()) << table.status();
    return *std::move(table);
  }
  std::vector<std::byte*> Direct() { return FindDirectBuckets(plan(), Table(), {engine_->data()}, kSlots); }
  bool HoldsOnly(int64_t bucket, const std::string& tensor) const {
    for (const Piece& piece : plan().PiecesOf(plan().buckets()[bucket])) {
      if (plan().catalog().tensors()[piece.tensor].name != tensor) return false;
    }
    return true;
  }
  // What the engine's memory is to hold: the image's copies, and poison everywhere else.
  std::vector<std::byte> Expected() {
    std::vector<std::byte> memory(static_cast<size_t>(bytes_), kPoison);
    const ScatterTable table = Table();
    for (size_t k = 0; k < plan().buckets().size(); ++k) {
      const std::byte* const wire = image_.data() + plan().buckets()[k].image_offset;
      for (int64_t i = table.bucket_begin[k]; i < table.bucket_begin[k + 1]; ++i) {
        const ScatterCopy& copy = table.copies[i];
        for (int64_t row = 0; row < copy.rows; ++row) {
          std::memcpy(memory.data() + copy.dest_offset + row * copy.dest_pitch,
                      wire + copy.source_offset + row * copy.source_pitch, static_cast<size_t>(copy.row_bytes));
        }
      }
    }
    return memory;
  }
  std::vector<std::byte> Memory() const { return {engine_->data(), engine_->data() + bytes_}; }

  sink::Received Receive(CopyingTransport& transport) {
    loader_ = *backend_.NewLoader(model_.plan(), WithoutDirectBuckets(Table(), Direct()), {engine_->data()});
    ring_ = *backend_.memory().Allocate(RingLayout(plan(), kSlots).bytes(), "a ring");
    const ReceiveContext context{plan(), transport, *loader_, absl::Seconds(30), &bucket_};
    return ReceiveInPlace(context, ring_->data(), kSlots, Direct());
  }

  const contract::EncodedModel model_;
  host::HostBackend backend_;
  std::vector<uint64_t> digests_;
  std::vector<std::byte> image_;
  std::vector<Destination> destinations_;
  int64_t bytes_ = 0;
  std::unique_ptr<Buffer> engine_, ring_;
  std::unique_ptr<Loader> loader_;
  std::atomic<int64_t> bucket_ = -1;
};

TEST_F(DirectBucketsTest, AreEveryOtherBucketThatOneLargeTensorFillsAndGoesOnBehind) {
  const std::vector<std::byte*> direct = Direct();
  ASSERT_EQ(direct.size(), plan().buckets().size());
  int64_t found = 0;
  for (size_t k = 0; k < direct.size(); ++k) {
    if (direct[k] == nullptr) continue;
    ++found;
    const auto bucket = static_cast<int64_t>(k);
    const bool embedding = HoldsOnly(bucket, "model.embed_tokens.weight");
    EXPECT_TRUE(embedding || HoldsOnly(bucket, "lm_head.weight")) << k;
    EXPECT_EQ(direct[k + 1], nullptr) << k;
    EXPECT_EQ(plan().PiecesOf(plan().buckets()[k + 1])[0].tensor, plan().PiecesOf(plan().buckets()[k])[0].tensor) << k;
  }
  EXPECT_GE(found, 12);
}

TEST_F(DirectBucketsTest, WhatIsTakenByTwoPlacesReachesBoth) {
  const auto embedding = std::find_if(destinations_.begin(), destinations_.end(),
                                      [](const Destination& d) { return d.output == "model.embed_tokens.weight"; });
  ASSERT_NE(embedding, destinations_.end());
  Destination twin = *embedding;
  twin.offset_bytes = bytes_;
  bytes_ += RoundUp(twin.row_end * twin.row_pitch_bytes, kGuardBytes) + kGuardBytes;
  destinations_.push_back(twin);
  engine_ = *backend_.memory().Allocate(bytes_, "an engine");
  std::memset(engine_->data(), static_cast<int>(kPoison), static_cast<size_t>(bytes_));
  CopyingTransport transport(&image_);
  ASSERT_TRUE(Receive(transport).status.ok());
  EXPECT_EQ(Memory(), Expected());
}

TEST_F(DirectBucketsTest, BringEveryByteWhereItBelongsAndNoneBeside) {
  CopyingTransport transport(&image_);
  const sink::Received received = Receive(transport);
  ASSERT_TRUE(received.status.ok()) << received.status;
  EXPECT_EQ(received.digest, plan().ContentDigest(digests_));
  EXPECT_TRUE(received.wrote);
  EXPECT_EQ(Memory(), Expected());
  const std::vector<std::byte*> direct = Direct();
  for (size_t k = 0; k < direct.size(); ++k) {
    const bool in_ring = transport.places[k] >= ring_->data() && transport.places[k] < ring_->data() + ring_->bytes();
    EXPECT_EQ(in_ring, direct[k] == nullptr) << k;
    EXPECT_TRUE(direct[k] == nullptr || transport.places[k] == direct[k]) << k;
  }
}

TEST_F(DirectBucketsTest, DamagedOnTheWireAreFoundAndLeaveLiveMemoryTouched) {
  const std::vector<std::byte*> direct = Direct();
  const auto first = std::find_if(direct.begin(), direct.end(), [](std::byte* place) { return place != nullptr; });
  ASSERT_GE(first - direct.begin(), kSlots);
  CopyingTransport transport(&image_);
  transport.corrupt = first - direct.begin();
  const sink::Received torn = Receive(transport);
  EXPECT_EQ(torn.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(torn.status.message()), testing::HasSubstr("model.embed_tokens.weight"));
  EXPECT_EQ(torn.bucket, transport.corrupt);
  EXPECT_TRUE(torn.wrote);  // although no apply did
  CopyingTransport whole(&image_);
  ASSERT_TRUE(Receive(whole).status.ok());
  EXPECT_EQ(Memory(), Expected());
}

TEST_F(DirectBucketsTest, AreNoneWhereMemoryIsNotAlignedAsTheCheckWantsIt) {
  Place(64);
  EXPECT_THAT(Direct(), Each(IsNull()));
  CopyingTransport transport(&image_);
  ASSERT_TRUE(Receive(transport).status.ok());
  EXPECT_EQ(Memory(), Expected());
}

TEST_F(DirectBucketsTest, AreNoneWhereTheEngineHoldsColumnsOfATensorApart) {
  ASSERT_THAT(Direct(), Contains(Not(IsNull())));
  for (Destination& destination : destinations_) {
    if (destination.dtype == Dtype::kBF16 && destination.shape.size() == 2) destination.col_end /= 2;
  }
  EXPECT_THAT(Direct(), Each(IsNull()));
}

}  // namespace
}  // namespace wsync
