// Temporary directories, hand-made safetensors files and small tensors for the checkpoint tests.
#ifndef WSYNC_TESTS_CHECKPOINT_TEST_FILES_H_
#define WSYNC_TESTS_CHECKPOINT_TEST_FILES_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "client/checkpoint/safetensors.h"
#include "server/core/catalog.h"

namespace wsync {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string path = (std::filesystem::temp_directory_path() / "wsync-checkpoint-XXXXXX").string();
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    path_ = path;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

inline std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  ASSERT_TRUE(out.flush().good()) << path;
}

// The bytes of a safetensors file with this header, whatever it says, and this many zero bytes of data.
inline std::string RawSafetensors(const std::string& header, size_t buffer_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i));
  return file + header + std::string(buffer_bytes, '\0');
}

inline std::vector<std::byte> RandomBytes(int64_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> data(bytes);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  return data;
}

// BF16 values between 2^-8 and 2 with either sign: no NaN, no infinity.
inline std::vector<std::byte> RandomBf16(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> data(count * 2);
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = static_cast<uint16_t>((random() & 0x8000) | (0x3b80 + random() % 0x0480));
    std::memcpy(&data[i * 2], &bits, 2);
  }
  return data;
}

struct TestTensor {
  Tensor tensor;
  std::vector<std::byte> bytes;
};

inline TestTensor Bf16Tensor(const std::string& name, std::vector<int64_t> shape, uint64_t seed = 1) {
  TestTensor made{{name, Dtype::kBF16, std::move(shape)}, {}};
  const MatrixView view = ViewOf(made.tensor);
  made.bytes = RandomBf16(view.rows * view.cols, seed);
  return made;
}

inline void WriteSafetensors(const std::string& path, const std::vector<TestTensor>& tensors) {
  std::vector<Tensor> list;
  for (const TestTensor& made : tensors) list.push_back(made.tensor);
  auto writer = SafetensorsWriter::Create(path, list);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (size_t i = 0; i < tensors.size(); ++i) ASSERT_TRUE((*writer)->Write(i, tensors[i].bytes).ok());
  const absl::Status status = (*writer)->Finish();
  ASSERT_TRUE(status.ok()) << status;
}

inline std::vector<std::byte> Copy(const TensorView& view) { return {view.data, view.data + view.bytes}; }

inline std::set<std::string> FilesIn(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.insert(entry.path().filename().string());
  }
  return names;
}

}  // namespace wsync

#endif  // WSYNC_TESTS_CHECKPOINT_TEST_FILES_H_
