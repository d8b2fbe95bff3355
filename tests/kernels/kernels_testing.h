// What the kernel tests share: SIMD levels as test parameters, guarded memory, and references written independently of
// the kernels, element by element.
#ifndef WSYNC_TESTS_KERNELS_KERNELS_TESTING_H_
#define WSYNC_TESTS_KERNELS_KERNELS_TESTING_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/quantize.h"
#include "kernels/simd.h"

namespace wsync::testing {

// The levels this CPU has; at least "portable".
std::vector<std::string> AvailableLevels();

// A test that runs once per SIMD level.
class EachSimdLevel : public ::testing::TestWithParam<std::string> {
 protected:
  EachSimdLevel() : before_(simd::Active().name) { EXPECT_TRUE(simd::Use(GetParam())); }
  ~EachSimdLevel() override { simd::Use(before_); }

 private:
  const std::string before_;
};
#define INSTANTIATE_FOR_EACH_SIMD_LEVEL(suite)                                                    \
  INSTANTIATE_TEST_SUITE_P(Simd, suite, ::testing::ValuesIn(::wsync::testing::AvailableLevels()), \
                           [](const ::testing::TestParamInfo<std::string>& test) { return test.param; })

// Memory of `size` bytes at an offset from a 64-byte boundary, poisoned, with guard bytes on both sides.
class GuardedBytes {
 public:
  explicit GuardedBytes(int64_t size, int64_t misalignment = 0);
  std::byte* data() { return storage_.data() + begin_; }
  int64_t size() const { return size_; }
  bool GuardsIntact() const;
  std::vector<uint8_t> Copy() const;

 private:
  int64_t size_;
  int64_t begin_;
  std::vector<std::byte> storage_;
};

// The digest, straight from its definition.
uint64_t ReferenceDigest(const std::byte* data, int64_t row_begin, int64_t rows, int64_t row_bytes, int64_t pitch);
uint64_t ReferenceScaleDigest(const std::byte* scales, int64_t first, int64_t count);

// Bits of `x` in a quantizable dtype (rounded toward zero), and back, exactly.
uint32_t BitsOf(float x, Dtype dtype);
float ValueOf(uint32_t bits, Dtype dtype);

// A tensor of a quantizable dtype in naturally aligned memory.
struct Tensor {
  Dtype dtype;
  int64_t rows, cols;
  std::vector<uint32_t> storage;

  Tensor(Dtype d, int64_t r, int64_t c)
      : dtype(d), rows(r), cols(c), storage(static_cast<size_t>(r * c * DtypeBytes(d) + 3) / 4) {}
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(storage.data()); }
  std::byte* data() { return reinterpret_cast<std::byte*>(storage.data()); }
  void SetBits(int64_t index, uint32_t bits) {
    const size_t bytes = static_cast<size_t>(DtypeBytes(dtype));
    std::memcpy(data() + static_cast<size_t>(index) * bytes, &bits, bytes);
  }
  float At(int64_t index) const {
    const size_t bytes = static_cast<size_t>(DtypeBytes(dtype));
    uint32_t bits = 0;
    std::memcpy(&bits, data() + static_cast<size_t>(index) * bytes, bytes);
    return ValueOf(bits, dtype);
  }
};

// Codes, scales and digest of a whole tensor, by the kernels and by a loop over elements (ScaleFor and EncodeE4M3).
struct Encoded {
  std::vector<uint8_t> codes;
  std::vector<uint32_t> scale_bits;
  uint64_t digest = 0;
  bool operator==(const Encoded&) const = default;
};
Encoded EncodeWhole(const Tensor& tensor, const Recipe& recipe);  // also checks guards and that nothing is non-finite
Encoded ReferenceEncode(const Tensor& tensor, const Recipe& recipe);

}  // namespace wsync::testing

#endif  // WSYNC_TESTS_KERNELS_KERNELS_TESTING_H_
