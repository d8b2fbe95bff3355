#include "client/checkpoint/safetensors.h"

#include <gmock/gmock.h>

#include <map>

#include "tests/checkpoint/test_files.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Safetensors, WrittenFileHasTheReferenceLayout) {
  const TemporaryDirectory directory;
  const std::string path = directory / "model.safetensors";
  WriteSafetensors(path, {{{"z", Dtype::kU8, {3}}, RandomBytes(3, 1)},
                          {{"b", Dtype::kBF16, {1, 2}}, RandomBytes(4, 2)},
                          {{"a", Dtype::kBF16, {}}, RandomBytes(2, 3)},
                          {{"s", Dtype::kF32, {1}}, RandomBytes(4, 4)}});
  const std::string file = ReadText(path);
  std::string json = R"({"__metadata__":{"format":"pt"},)"
                     R"("s":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                     R"("a":{"dtype":"BF16","shape":[],"data_offsets":[4,6]},)"
                     R"("b":{"dtype":"BF16","shape":[1,2],"data_offsets":[6,10]},)"
                     R"("z":{"dtype":"U8","shape":[3],"data_offsets":[10,13]}})";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::string header = RawSafetensors(json, 0);
  ASSERT_EQ(header.size() % 8, 0u);
  EXPECT_EQ(file.substr(0, header.size()), header);
  EXPECT_EQ(file.size(), header.size() + 13);
}

TEST(Safetensors, RandomTensorsSurviveWriteAndRead) {
  constexpr int kDtypes = 19;
  static_assert(DtypeBytes(static_cast<Dtype>(kDtypes)) > 0 && DtypeBytes(static_cast<Dtype>(kDtypes + 1)) == 0);
  const TemporaryDirectory directory;
  std::mt19937_64 random(20240607);
  for (int round = 0; round < 50; ++round) {
    std::map<std::string, TestTensor> tensors;
    const int count = static_cast<int>(random() % 30);
    while (static_cast<int>(tensors.size()) < count) {
      TestTensor made;
      made.tensor.name = "layer \"" + std::to_string(random() % 1000) + "\"\\ü." + std::to_string(tensors.size());
      made.tensor.dtype = static_cast<Dtype>(1 + random() % kDtypes);
      for (size_t dims = random() % 4; dims > 0; --dims) made.tensor.shape.push_back(random() % 9);  // 0 included
      made.bytes = RandomBytes(BytesOf(made.tensor), random());
      tensors.emplace(made.tensor.name, made);
    }
    std::vector<TestTensor> list;
    for (const auto& [name, made] : tensors) list.push_back(made);
    std::shuffle(list.begin(), list.end(), random);
    const std::string path = directory / "random.safetensors";
    WriteSafetensors(path, list);
    const auto file = SafetensorsFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_EQ((*file)->tensors().size(), tensors.size());
    for (const TensorView& view : (*file)->tensors()) {
      const TestTensor& made = tensors.at(view.tensor.name);
      EXPECT_EQ(view.tensor, made.tensor);
      EXPECT_EQ(Copy(view), made.bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % DtypeBytes(view.tensor.dtype), 0u) << "misaligned";
    }
  }
}

TEST(Safetensors, RowsMayBeWrittenInAnyOrder) {
  const TemporaryDirectory directory;
  const std::string path = directory / "rows.safetensors";
  const std::vector<std::byte> bytes = RandomBytes(6 * 5 * 2, 7);
  auto writer = SafetensorsWriter::Create(path, {{"x", Dtype::kBF16, {6, 5}}, {"y", Dtype::kF32, {}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const absl::Span<const std::byte> rows(bytes);
  EXPECT_TRUE((*writer)->WriteRows(0, 4, rows.subspan(40, 20)).ok());
  EXPECT_TRUE((*writer)->WriteRows(1, 0, RandomBytes(4, 8)).ok());
  EXPECT_TRUE((*writer)->WriteRows(0, 0, rows.subspan(0, 40)).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(Copy((*file)->tensors()[1]), bytes);
}

TEST(Safetensors, WritesOutsideATensorAreRefused) {
  const TemporaryDirectory directory;
  auto writer = SafetensorsWriter::Create(directory / "x.safetensors", {{"x", Dtype::kBF16, {6, 5}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<std::byte> bytes(70);
  const absl::Span<const std::byte> span(bytes);
  EXPECT_EQ((*writer)->Write(0, span).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->WriteRows(0, 0, span.first(15)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->WriteRows(0, -1, span.first(10)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->WriteRows(0, INT64_MAX, span.first(10)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*writer)->WriteRows(0, 6, span.first(10)).code(), absl::StatusCode::kOutOfRange);
}

TEST(Safetensors, UnfinishedFileLeavesTheOldOneAsItWas) {
  const TemporaryDirectory directory;
  const std::string path = directory / "model.safetensors";
  WriteText(path, "old");
  {
    auto writer = SafetensorsWriter::Create(path, {{"x", Dtype::kU8, {4}}, {"y", Dtype::kU8, {4}}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Write(0, RandomBytes(4, 1)).ok());
    const absl::Status status = (*writer)->Finish();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("tensor 'y' got 0 of its 4 bytes"));
  }
  EXPECT_EQ(ReadText(path), "old");
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre("model.safetensors"));
}

TEST(Safetensors, DuplicateNamesCannotBeWritten) {
  const TemporaryDirectory directory;
  const auto writer = SafetensorsWriter::Create(directory / "x", {{"x", Dtype::kU8, {4}}, {"x", Dtype::kU8, {4}}});
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(FilesIn(directory.path()), ElementsAre());
}

TEST(Safetensors, FileWithoutTensorsIsValid) {
  const TemporaryDirectory directory;
  WriteSafetensors(directory / "empty.safetensors", {});
  const auto file = SafetensorsFile::Open(directory / "empty.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->tensors().empty());
}

}  // namespace
}  // namespace wsync
