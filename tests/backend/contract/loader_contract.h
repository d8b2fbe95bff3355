// What every backend's Loader must do.
#ifndef WSYNC_TESTS_BACKEND_CONTRACT_LOADER_CONTRACT_H_
#define WSYNC_TESTS_BACKEND_CONTRACT_LOADER_CONTRACT_H_

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/core/destinations.h"
#include "tests/backend/contract/agent.h"
#include "tests/backend/contract/encoded_model.h"

namespace wsync::contract {

// A model that arrived: its image on the device, and a loader over it.
struct LoaderRig {
  LoaderRig(Agent& a, const EncodedModel& m, ScatterTable table = {}, std::vector<std::byte*> handles = {})
      : agent(a), model(m), image(m.EncodeImage(&digests)) {
    device = *a.backend().memory().Allocate(m.plan()->image_bytes(), "image");
    Upload();
    auto made = a.backend().NewLoader(m.plan(), std::move(table), std::move(handles));
    EXPECT_TRUE(made.ok()) << made.status();
    loader = *std::move(made);
  }
  void Upload() { agent.ToDevice(device->data(), image); }
  const std::byte* Wire(int64_t k) const { return device->data() + model.bucket(k).image_offset; }
  absl::Status CheckBucket(int64_t k) { return WaitFor(loader->Check(k, Wire(k), nullptr)); }
  absl::Status CheckAll() {
    for (int64_t k = 0; k < model.buckets(); ++k) loader->Check(k, Wire(k), nullptr);
    return loader->Finish(HangDeadline()).status();
  }
  // The status of bucket k's check with one bit of the image flipped.
  absl::Status CheckFlipped(int64_t k, int64_t byte, int bit) {
    image[byte] ^= std::byte{1} << bit;
    Upload();
    const absl::Status status = CheckBucket(k);
    (void)loader->Finish(HangDeadline());
    image[byte] ^= std::byte{1} << bit;
    return status;
  }

  Agent& agent;
  const EncodedModel& model;
  std::vector<uint64_t> digests;
  Bytes image;
  std::unique_ptr<Buffer> device;
  std::unique_ptr<Loader> loader;
};

class LoaderContract : public AgentContract {};

TEST_P(LoaderContract, WhatTheEncoderMadePassesAndFinishGivesItsDigests) {
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    const EncodedModel model(static_cast<uint32_t>(granularity), {.granularity = granularity});
    LoaderRig rig(*agent_, model);
    for (int64_t k = 0; k < model.buckets(); ++k) EXPECT_TRUE(rig.CheckBucket(k).ok());
    const auto digests = rig.loader->Finish(HangDeadline());
    ASSERT_TRUE(digests.ok()) << digests.status();
    EXPECT_EQ(*digests, rig.digests);
  }
}

TEST_P(LoaderContract, AFlippedBitInDataScalesOrDigestTableIsFoundAndNamed) {
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    const EncodedModel model({{"a.up.weight", Dtype::kBF16, {1200, 130}}}, {.granularity = granularity});
    LoaderRig rig(*agent_, model);
    std::mt19937 random(7);
    for (int64_t k = 0; k < model.buckets(); ++k) {
      const Bucket& bucket = model.bucket(k);
      const Piece& piece = model.plan()->PiecesOf(bucket)[0];
      std::vector<int64_t> bytes = {piece.data_offset, piece.data_offset + piece.data_bytes - 1,
                                    piece.data_offset + static_cast<int64_t>(random() % piece.data_bytes),
                                    bucket.digest_offset + 3};
      if (piece.scale_bytes > 0)
        bytes.push_back(piece.scale_offset + static_cast<int64_t>(random() % piece.scale_bytes));
      for (const int64_t byte : bytes) {
        const absl::Status status = rig.CheckFlipped(k, bucket.image_offset + byte, static_cast<int>(random() % 8));
        const std::string rows =
            "rows " + std::to_string(piece.row_begin) + " to " + std::to_string(piece.row_begin + piece.rows - 1);
        EXPECT_THAT(status, FailsWith(absl::StatusCode::kDataLoss, "'a.up.weight'")) << "byte " << byte;
        EXPECT_THAT(status, FailsWith(absl::StatusCode::kDataLoss, "bucket " + std::to_string(k)));
        EXPECT_THAT(status, FailsWith(absl::StatusCode::kDataLoss, rows));
      }
    }
    rig.Upload();
    EXPECT_TRUE(rig.CheckAll().ok());
  }
}

TEST_P(LoaderContract, EveryByteOfASmallBucketCounts) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {3, 130}}, {"model.norm.weight", Dtype::kF32, {5}}}, {});
  LoaderRig rig(*agent_, model);
  ASSERT_EQ(model.buckets(), 1);
  for (const Piece& piece : model.plan()->PiecesOf(model.bucket(0))) {
    for (int64_t i = 0; i < piece.data_bytes; ++i) {
      EXPECT_FALSE(rig.CheckFlipped(0, piece.data_offset + i, i % 8).ok()) << "data byte " << i;
    }
    for (int64_t i = 0; i < piece.scale_bytes; ++i) {
      EXPECT_FALSE(rig.CheckFlipped(0, piece.scale_offset + i, i % 8).ok()) << "scale byte " << i;
    }
  }
}

TEST_P(LoaderContract, ABucketInAnothersPlaceIsFound) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {4000, 128}}}, {});
  ASSERT_GE(model.buckets(), 3);
  ASSERT_EQ(model.bucket(0).wire_bytes, model.bucket(1).wire_bytes);
  LoaderRig rig(*agent_, model);
  EXPECT_THAT(WaitFor(rig.loader->Check(0, rig.Wire(1), nullptr)),
              FailsWith(absl::StatusCode::kDataLoss, "'a.up.weight'"));
}

TEST_P(LoaderContract, BucketsOfTwinTensorsInEachOthersPlaceChangeTheContentDigest) {
  // Two tensors of one shape: each bucket is whole in itself, so only the version's digest can tell.
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {384, 128}}, {"b.up.weight", Dtype::kBF16, {384, 128}}}, {});
  ASSERT_EQ(model.buckets(), 2);
  LoaderRig rig(*agent_, model);
  rig.loader->Check(0, rig.Wire(1), nullptr);
  rig.loader->Check(1, rig.Wire(0), nullptr);
  const auto digests = rig.loader->Finish(HangDeadline());
  ASSERT_TRUE(digests.ok()) << digests.status();
  EXPECT_NE(model.plan()->ContentDigest(*digests), model.plan()->ContentDigest(rig.digests));
}

TEST_P(LoaderContract, AFailedCheckIsToldByFinishOnceAndTheNextVersionIsClean) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {1200, 130}}}, {});
  LoaderRig rig(*agent_, model);
  rig.image[5] ^= std::byte{1};
  rig.Upload();
  EXPECT_EQ(rig.CheckAll().code(), absl::StatusCode::kDataLoss);
  rig.image[5] ^= std::byte{1};
  rig.Upload();
  EXPECT_TRUE(rig.CheckAll().ok());
}

TEST_P(LoaderContract, AnApplyAfterAFailedCheckWritesNothing) {
  const EncodedModel model({{"model.norm.weight", Dtype::kBF16, {100}}}, {});
  const auto engine = Allocate(*agent_, 200);
  const Destination all{.output = "model.norm.weight",
                        .dtype = Dtype::kBF16,
                        .shape = {100},
                        .row_end = 1,
                        .col_end = 100,
                        .row_pitch_bytes = 200};
  const auto table = BuildScatterTable(*model.plan(), {all}, {200}, false);
  ASSERT_TRUE(table.ok()) << table.status();
  LoaderRig rig(*agent_, model, *table, {engine->data()});
  rig.image[5] ^= std::byte{1};
  rig.Upload();
  const CompletionPtr checked = rig.loader->Check(0, rig.Wire(0), nullptr);
  EXPECT_EQ(WaitFor(rig.loader->Apply(0, rig.Wire(0), checked)).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(agent_->FromDevice(engine->data(), 200), Bytes(200));
  EXPECT_EQ(rig.loader->Finish(HangDeadline()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(rig.loader->wrote());
}

// An output's bytes, put together from the pieces of an image.
inline Bytes OutputBytes(const EncodedModel& model, const Bytes& image, const Output& output) {
  Bytes bytes;
  for (const Bucket& bucket : model.plan()->buckets()) {
    for (const Piece& piece : model.plan()->PiecesOf(bucket)) {
      if (piece.tensor != output.tensor) continue;
      const int64_t begin = bucket.image_offset + (output.is_scale ? piece.scale_offset : piece.data_offset);
      const int64_t size = output.is_scale ? piece.scale_bytes : piece.data_bytes;
      bytes.insert(bytes.end(), image.begin() + begin, image.begin() + begin + size);
    }
  }
  return bytes;
}

// Rows and columns [begin, end) of a matrix, laid out with a row pitch; what is between rows stays as it was.
struct Slice {
  int64_t row_begin, row_end, col_begin, col_end;
};
inline void PutSlice(const Bytes& matrix, int64_t row_bytes, int64_t element, const Slice& slice, Bytes* to,
                     int64_t offset, int64_t pitch) {
  const int64_t bytes = (slice.col_end - slice.col_begin) * element;
  for (int64_t row = slice.row_begin; row < slice.row_end; ++row) {
    std::memcpy(to->data() + offset + (row - slice.row_begin) * pitch,
                matrix.data() + row * row_bytes + slice.col_begin * element, bytes);
  }
}

TEST_P(LoaderContract, ApplyPutsEverySliceWhereItBelongsAndTouchesNothingElse) {
  for (const Granularity granularity : {Granularity::kBlock, Granularity::kChannel, Granularity::kTensor}) {
    const EncodedModel model(40 + static_cast<uint32_t>(granularity), {.granularity = granularity});
    std::vector<uint64_t> digests;
    const Bytes image = model.EncodeImage(&digests);
    std::mt19937 random(static_cast<uint32_t>(granularity));
    std::vector<Destination> destinations;
    int64_t end = 64;
    for (const Output& output : model.plan()->outputs()) {
      const MatrixView view = ViewOf({output.name, output.dtype, output.shape});
      if (view.rows == 0 || view.cols == 0) continue;
      Destination d{.output = output.name, .dtype = output.dtype, .shape = output.shape};
      d.row_begin = static_cast<int64_t>(random() % view.rows);
      d.row_end = d.row_begin + 1 + static_cast<int64_t>(random() % (view.rows - d.row_begin));
      d.col_begin = static_cast<int64_t>(random() % view.cols);
      d.col_end = d.col_begin + 1 + static_cast<int64_t>(random() % (view.cols - d.col_begin));
      d.offset_bytes = end;
      d.row_pitch_bytes = ((d.col_end - d.col_begin) + static_cast<int64_t>(random() % 3)) * DtypeBytes(output.dtype);
      end += (d.row_end - d.row_begin) * d.row_pitch_bytes + 64;
      destinations.push_back(d);
    }
    const auto table = BuildScatterTable(*model.plan(), destinations, {end}, /*allow_partial=*/true);
    ASSERT_TRUE(table.ok()) << table.status();
    const auto engine = Allocate(*agent_, end);
    Bytes expected(end, std::byte{0xEE});
    agent_->ToDevice(engine->data(), expected);
    LoaderRig rig(*agent_, model, *table, {engine->data()});
    for (const Destination& d : destinations) {
      const Output& output = model.plan()->outputs()[model.plan()->FindOutput(d.output)];
      const int64_t element = DtypeBytes(d.dtype);
      PutSlice(OutputBytes(model, image, output), ViewOf({d.output, d.dtype, d.shape}).cols * element, element,
               {d.row_begin, d.row_end, d.col_begin, d.col_end}, &expected, d.offset_bytes, d.row_pitch_bytes);
    }
    // As in place, bucket after bucket, each behind its check; then as staged, all at once.
    for (int64_t k = 0; k < model.buckets(); ++k) {
      rig.loader->Apply(k, rig.Wire(k), rig.loader->Check(k, rig.Wire(k), nullptr));
    }
    ASSERT_TRUE(rig.loader->Finish(HangDeadline()).ok());
    EXPECT_TRUE(rig.loader->wrote());
    EXPECT_EQ(agent_->FromDevice(engine->data(), end), expected);
    agent_->ToDevice(engine->data(), Bytes(end, std::byte{0xEE}));
    EXPECT_TRUE(WaitFor(rig.loader->ApplyAll(rig.device->data(), nullptr)).ok());
    ASSERT_TRUE(rig.loader->Finish(HangDeadline()).ok());
    EXPECT_TRUE(rig.loader->wrote());
    EXPECT_EQ(agent_->FromDevice(engine->data(), end), expected);
  }
}

TEST_P(LoaderContract, ChecksAloneWriteNothing) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {100, 20}}}, {});
  LoaderRig rig(*agent_, model);
  EXPECT_TRUE(rig.CheckAll().ok());
  EXPECT_FALSE(rig.loader->wrote());
}

TEST_P(LoaderContract, WithoutDestinationsApplyDoesNothing) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {100, 20}}}, {});
  LoaderRig rig(*agent_, model);
  EXPECT_TRUE(WaitFor(rig.loader->Apply(0, rig.Wire(0), nullptr)).ok());
  EXPECT_TRUE(WaitFor(rig.loader->ApplyAll(rig.device->data(), nullptr)).ok());
}

TEST_P(LoaderContract, ARetargetedLoaderWritesToTheNewPlaceOnly) {
  const EncodedModel model({{"a.up.weight", Dtype::kBF16, {1200, 130}}, {"b.norm.weight", Dtype::kBF16, {100}}}, {});
  const Output& norm = model.plan()->outputs().back();
  const auto to_norm = [&](int64_t offset) {
    const Destination d{.output = norm.name,
                        .dtype = norm.dtype,
                        .shape = norm.shape,
                        .row_end = 1,
                        .col_end = 100,
                        .offset_bytes = offset,
                        .row_pitch_bytes = 200};
    return *BuildScatterTable(*model.plan(), {d}, {400}, /*allow_partial=*/true);
  };
  std::vector<Destination> all;
  int64_t bytes = 0;
  for (const Output& output : model.plan()->outputs()) {
    const MatrixView view = ViewOf({output.name, output.dtype, output.shape});
    const int64_t pitch = view.cols * DtypeBytes(output.dtype);
    all.push_back({output.name, output.dtype, output.shape, 0, view.rows, 0, view.cols, 0, bytes, pitch});
    bytes += view.rows * pitch;
  }
  const auto first = Allocate(*agent_, 400), second = Allocate(*agent_, 400), large = Allocate(*agent_, bytes);
  LoaderRig rig(*agent_, model, to_norm(0), {first->data()});
  const Bytes value = OutputBytes(model, rig.image, norm);
  const auto apply_all = [&] {
    for (int64_t k = 0; k < model.buckets(); ++k) {
      rig.loader->Apply(k, rig.Wire(k), rig.loader->Check(k, rig.Wire(k), nullptr));
    }
    EXPECT_TRUE(rig.loader->Finish(HangDeadline()).ok());
  };
  ASSERT_TRUE(rig.loader->Retarget(to_norm(200), {second->data()}).ok());
  apply_all();
  EXPECT_EQ(agent_->FromDevice(first->data(), 400), Bytes(400));
  Bytes expected(400);
  std::copy(value.begin(), value.end(), expected.begin() + 200);
  EXPECT_EQ(agent_->FromDevice(second->data(), 400), expected);

  // More copies than before, then nowhere, then somewhere again.
  const auto table = BuildScatterTable(*model.plan(), all, {bytes}, /*allow_partial=*/false);
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_TRUE(rig.loader->Retarget(*table, {large->data()}).ok());
  apply_all();
  Bytes whole;
  for (const Output& output : model.plan()->outputs()) {
    const Bytes part = OutputBytes(model, rig.image, output);
    whole.insert(whole.end(), part.begin(), part.end());
  }
  EXPECT_EQ(agent_->FromDevice(large->data(), bytes), whole);
  agent_->ToDevice(large->data(), Bytes(bytes));
  ASSERT_TRUE(rig.loader->Retarget({}, {}).ok());
  apply_all();
  EXPECT_EQ(agent_->FromDevice(large->data(), bytes), Bytes(bytes));
  ASSERT_TRUE(rig.loader->Retarget(to_norm(0), {first->data()}).ok());
  apply_all();
  EXPECT_EQ(agent_->FromDevice(first->data(), 200), value);
}

TEST_P(LoaderContract, ALoaderThatCannotBeRetargetedWritesNowhere) {
  const EncodedModel model({{"model.norm.weight", Dtype::kBF16, {100}}}, {});
  const auto engine = Allocate(*agent_, 200);
  ScatterTable table;
  table.copies.push_back({.rows = 1, .row_bytes = 200});
  table.bucket_begin = {0, 1};
  LoaderRig rig(*agent_, model, table, {engine->data()});
  table.copies[0].handle = 1;
  EXPECT_THAT(rig.loader->Retarget(table, {engine->data()}),
              FailsWith(absl::StatusCode::kInvalidArgument, "handle 1 of 1"));
  EXPECT_TRUE(WaitFor(rig.loader->Apply(0, rig.Wire(0), nullptr)).ok());
  EXPECT_EQ(agent_->FromDevice(engine->data(), 200), Bytes(200));
}

TEST_P(LoaderContract, AHandleThatWasNotOpenedIsRefused) {
  const EncodedModel model({{"model.norm.weight", Dtype::kBF16, {100}}}, {});
  ScatterTable table;
  table.copies.push_back({.handle = 1, .rows = 1, .row_bytes = 200});
  table.bucket_begin = {0, 1};
  const auto engine = Allocate(*agent_, 200);
  EXPECT_THAT(agent_->backend().NewLoader(model.plan(), table, {engine->data()}).status(),
              FailsWith(absl::StatusCode::kInvalidArgument, "handle 1 of 1"));
}

}  // namespace wsync::contract

#endif  // WSYNC_TESTS_BACKEND_CONTRACT_LOADER_CONTRACT_H_
