// The choice of the SIMD level. Nothing in this binary may use the kernels before the first test: the choice is made
// once.
#include "kernels/simd.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/quantize.h"
#include "kernels/streaming.h"

namespace wsync {
namespace {

// In a process of its own: what the level is with WSYNC_SIMD set to `cap`.
void ExpectLevel(const char* cap, bool (*expected)(std::string_view)) {
  EXPECT_EXIT(
      {
        setenv("WSYNC_SIMD", cap, 1);
        std::_Exit(expected(SimdLevel()) ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "")
      << cap;
}

TEST(SimdDeathTest, EnvironmentCapsTheLevel) {
  ExpectLevel("portable", [](std::string_view level) { return level == "portable"; });
  ExpectLevel("avx2", [](std::string_view level) { return level != "avx512"; });
  ExpectLevel("no such level", [](std::string_view level) { return simd::Use(level); });
}

TEST(SimdTest, UseTakesAKnownLevelAndRefusesOthers) {
  ASSERT_TRUE(simd::Use("portable"));
  EXPECT_EQ(SimdLevel(), "portable");
  EXPECT_FALSE(simd::Use("avx1024"));
  EXPECT_EQ(SimdLevel(), "portable");
}

TEST(SimdTest, StreamingLoopReadsAllAndWritesAll) {
  for (const char* level : {"portable", "avx2", "avx512"}) {
    if (!simd::Use(level)) continue;
    std::byte in[2 * 200], out[201];
    for (size_t i = 0; i < sizeof(in); ++i) in[i] = i % 2 == 0 ? std::byte{0x0F} : std::byte{0x3C};
    for (std::byte& b : out) b = std::byte{0x5A};
    StreamRead2Write1(in, out, 200);
    int unwritten = 0;
    for (std::byte b : out) unwritten += b == std::byte{0x5A};
    EXPECT_EQ(unwritten, 1) << level;
    EXPECT_EQ(out[200], std::byte{0x5A}) << level;
  }
}

}  // namespace
}  // namespace wsync
