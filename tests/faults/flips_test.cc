// Damage of every kind to the bytes of a version, and that none goes unnoticed before it could be served: single bits
// in codes, scales and digest tables, bits of messages in transit, buckets in each other's place, buckets of an older
// version. WSYNC_FAULT_FLIPS says how many bits (default 100,000).
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/backend/host/data_chunk.h"
#include "server/backend/host/loader.h"
#include "server/backend/host/worker_pool.h"
#include "server/core/clock.h"
#include "tests/backend/contract/encoded_model.h"

namespace wsync {
namespace {

using contract::Bytes;
using contract::EncodedModel;

int64_t Flips() {
  const char* text = std::getenv("WSYNC_FAULT_FLIPS");
  return text == nullptr ? 100'000 : std::atoll(text);
}

absl::Time Soon() { return MonotonicNow() + absl::Seconds(30); }

// Weights of linear layers that are cut into buckets of equal size, and a norm.
std::vector<Tensor> Tensors() {
  std::vector<Tensor> tensors;
  for (const char* name : {"a", "b", "c"}) {
    tensors.push_back({std::string(name) + ".up_proj.weight", Dtype::kBF16, {512, 256}});
  }
  tensors.push_back({"norm.weight", Dtype::kBF16, {300}});
  return tensors;
}

class Receiver {
 public:
  explicit Receiver(const EncodedModel& model) : model_(model), pool_(1) {
    loader_ = *host::NewHostLoader(model.plan(), {}, {}, &pool_);
    image_ = model.EncodeImage(&digests_);
    expected_ = model.plan()->ContentDigest(digests_);
  }
  Bytes& image() { return image_; }
  std::byte* Wire(int64_t bucket) { return image_.data() + model_.bucket(bucket).image_offset; }
  // Would a sink say `staged` with the digest that the coordinator compares?
  bool TakesBucket(int64_t bucket) {
    const bool good = loader_->Check(bucket, Wire(bucket), nullptr)->Wait(Soon()).ok();
    (void)loader_->Finish(Soon());
    return good;
  }
  bool TakesVersion() {
    for (int64_t k = 0; k < model_.buckets(); ++k) (void)loader_->Check(k, Wire(k), nullptr);
    const auto digests = loader_->Finish(Soon());
    return digests.ok() && model_.plan()->ContentDigest(*digests) == expected_;
  }

 private:
  const EncodedModel& model_;
  host::WorkerPool pool_;
  std::unique_ptr<Loader> loader_;
  Bytes image_;
  std::vector<uint64_t> digests_;
  Hash128 expected_;
};

// A byte of bucket `k` that means something: of a piece's codes or scales, or of the digest table.
int64_t MeaningfulByte(const EncodedModel& model, int64_t k, std::mt19937_64& random, int64_t* kind) {
  const Bucket& bucket = model.bucket(k);
  const int64_t pieces = bucket.piece_end - bucket.piece_begin;
  const Piece& piece = model.plan()->pieces()[bucket.piece_begin + static_cast<int64_t>(random() % pieces)];
  *kind = static_cast<int64_t>(random() % 3);
  if (*kind == 1 && piece.scale_bytes == 0) *kind = 0;
  const auto within = [&random](int64_t bytes) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(bytes));
  };
  if (*kind == 0) return piece.data_offset + within(piece.data_bytes);
  if (*kind == 1) return piece.scale_offset + within(piece.scale_bytes);
  return bucket.digest_offset + within(pieces * static_cast<int64_t>(sizeof(uint64_t)));
}

TEST(Flips, NoneInCodesScalesOrDigestsIsMissed) {
  const EncodedModel model(Tensors(), RecipeRules());
  Receiver receiver(model);
  ASSERT_TRUE(receiver.TakesVersion());
  std::mt19937_64 random(5);
  int64_t missed = 0, by_kind[3] = {};
  const int64_t flips = Flips();
  for (int64_t i = 0; i < flips; ++i) {
    const auto bucket = static_cast<int64_t>(random() % model.buckets());
    int64_t kind = 0;
    std::byte& byte = receiver.Wire(bucket)[MeaningfulByte(model, bucket, random, &kind)];
    const std::byte bit = std::byte{1} << (random() % 8);
    byte ^= bit;
    missed += receiver.TakesBucket(bucket);
    byte ^= bit;
    ++by_kind[kind];
  }
  std::printf("%lld flips: %lld in codes, %lld in scales, %lld in digest tables; %lld missed\n",
              static_cast<long long>(flips), static_cast<long long>(by_kind[0]), static_cast<long long>(by_kind[1]),
              static_cast<long long>(by_kind[2]), static_cast<long long>(missed));
  EXPECT_EQ(missed, 0);
  EXPECT_TRUE(receiver.TakesVersion());
}

TEST(Flips, NoneInAMessageOfTheDataPlaneIsMissed) {
  const EncodedModel model(Tensors(), RecipeRules());
  Receiver receiver(model);
  std::mt19937_64 random(6);
  const int64_t flips = Flips() / 10;
  int64_t refused = 0, found = 0, missed = 0;
  for (int64_t i = 0; i < flips; ++i) {
    const auto k = static_cast<int64_t>(random() % model.buckets());
    const int64_t bytes = model.bucket(k).wire_bytes;
    const Bytes sent(receiver.Wire(k), receiver.Wire(k) + bytes);
    grpc::ByteBuffer chunk = host::EncodeChunk(7, 0, grpc::Slice(sent.data(), sent.size()));
    grpc::Slice flat;
    ASSERT_TRUE(chunk.DumpToSingleSlice(&flat).ok());
    std::string message(reinterpret_cast<const char*>(flat.begin()), flat.size());
    const size_t bit = i % 4 == 0 ? random() % 64 : random() % (message.size() * 8);  // its header every fourth time
    message[bit / 8] = static_cast<char>(message[bit / 8] ^ (1 << (bit % 8)));
    const grpc::Slice damaged(message);
    grpc::ByteBuffer arrived(&damaged, 1);
    std::fill(receiver.Wire(k), receiver.Wire(k) + bytes, std::byte{0xEE});
    host::ChunkTarget target{.sequence = 7, .data = receiver.Wire(k), .bytes = bytes};
    const bool decoded = host::DecodeChunk(&arrived, &target).ok();
    const bool whole = decoded && target.received == bytes;
    const bool taken = whole && receiver.TakesBucket(k);
    const bool harmless = taken && std::equal(sent.begin(), sent.end(), receiver.Wire(k));
    refused += !whole;
    found += whole && !taken;
    // A bit of the padding between pieces arrives flipped, and nothing reads it.
    if (taken && !harmless) {
      Bytes padded(receiver.Wire(k), receiver.Wire(k) + bytes);
      const int64_t at = static_cast<int64_t>(bit / 8) - static_cast<int64_t>(message.size() - sent.size());
      bool meant = at < 0 || at >= model.bucket(k).digest_offset;
      for (const Piece& piece : model.plan()->PiecesOf(model.bucket(k))) {
        meant |= at >= piece.data_offset && at < piece.data_offset + piece.data_bytes;
        meant |= at >= piece.scale_offset && at < piece.scale_offset + piece.scale_bytes;
      }
      const int64_t table_end =
          model.bucket(k).digest_offset + (model.bucket(k).piece_end - model.bucket(k).piece_begin) * 8;
      missed += meant && at < table_end;
    }
    std::copy(sent.begin(), sent.end(), receiver.Wire(k));
  }
  std::printf("%lld flips in messages: %lld refused as malformed, %lld found by digests, %lld missed\n",
              static_cast<long long>(flips), static_cast<long long>(refused), static_cast<long long>(found),
              static_cast<long long>(missed));
  EXPECT_EQ(missed, 0);
  EXPECT_GT(refused, 0);
  EXPECT_GT(found, 0);
}

TEST(Flips, BucketsInEachOthersPlaceAreFound) {
  const EncodedModel model(Tensors(), RecipeRules());
  Receiver receiver(model);
  int64_t swaps = 0;
  for (int64_t a = 0; a < model.buckets(); ++a) {
    for (int64_t b = a + 1; b < model.buckets(); ++b) {
      const int64_t bytes = model.bucket(a).wire_bytes;
      if (model.bucket(b).wire_bytes != bytes) continue;
      std::swap_ranges(receiver.Wire(a), receiver.Wire(a) + bytes, receiver.Wire(b));
      EXPECT_FALSE(receiver.TakesVersion()) << a << " and " << b;
      std::swap_ranges(receiver.Wire(a), receiver.Wire(a) + bytes, receiver.Wire(b));
      ++swaps;
    }
  }
  EXPECT_GT(swaps, 5);
  EXPECT_TRUE(receiver.TakesVersion());
}

TEST(Flips, ABucketOfAnOlderVersionIsFound) {
  EncodedModel model(Tensors(), RecipeRules());
  std::vector<uint64_t> old_digests;
  const Bytes old_image = model.EncodeImage(&old_digests);
  for (int64_t tensor = 0; tensor < 4; ++tensor) {
    for (int64_t element = 0; element < 300; element += 7) model.Poke(tensor, element, 0x3F80);
  }
  for (int64_t element = 0; element < 512 * 256; element += 1024) {
    for (int64_t tensor = 0; tensor < 3; ++tensor) model.Poke(tensor, element, 0x4000);
  }
  Receiver receiver(model);
  ASSERT_TRUE(receiver.TakesVersion());
  for (int64_t k = 0; k < model.buckets(); ++k) {
    const Bytes fresh(receiver.Wire(k), receiver.Wire(k) + model.bucket(k).wire_bytes);
    const std::byte* replayed = old_image.data() + model.bucket(k).image_offset;
    std::copy(replayed, replayed + model.bucket(k).wire_bytes, receiver.Wire(k));
    EXPECT_TRUE(receiver.TakesBucket(k));   // it is a good bucket,
    EXPECT_FALSE(receiver.TakesVersion());  // of another version
    std::copy(fresh.begin(), fresh.end(), receiver.Wire(k));
  }
  EXPECT_TRUE(receiver.TakesVersion());
}

}  // namespace
}  // namespace wsync
