// The encoder against what published quantizers really gave: tests/data/peers.safetensors.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "kernels/fp8.h"
#include "kernels_testing.h"

namespace wsync {
namespace {

using testing::Encoded;
using testing::Tensor;

// Just enough of safetensors for a file we wrote ourselves.
class Peers {
 public:
  Peers() {
    std::ifstream file(WSYNC_TEST_DATA "/peers.safetensors", std::ios::binary);
    file_.assign(std::istreambuf_iterator<char>(file), {});
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file_.data(), sizeof(header_bytes));
    header_ = nlohmann::json::parse(file_.substr(8, header_bytes));
    data_ = file_.data() + 8 + header_bytes;
  }

  std::vector<std::string> Cases() const {
    std::vector<std::string> cases;
    for (const auto& [name, entry] : header_.items()) {
      if (name.ends_with(".x")) cases.push_back(name.substr(0, name.size() - 2));
    }
    return cases;
  }

  Tensor Input(const std::string& test) const {
    const auto& entry = header_.at(test + ".x");
    Tensor tensor(Dtype::kBF16, entry["shape"][0], entry["shape"][1]);
    std::memcpy(tensor.data(), BytesOf(entry), SizeOf(entry));
    return tensor;
  }

  Encoded Output(const std::string& test, const std::string& recipe) const {
    const auto& codes = header_.at(test + "." + recipe + ".q");
    const auto& scales = header_.at(test + "." + recipe + ".s");
    Encoded encoded;
    encoded.codes.assign(BytesOf(codes), BytesOf(codes) + SizeOf(codes));
    encoded.scale_bits.resize(SizeOf(scales) / 4);
    std::memcpy(encoded.scale_bits.data(), BytesOf(scales), SizeOf(scales));
    return encoded;
  }

 private:
  const char* BytesOf(const nlohmann::json& entry) const { return data_ + entry["data_offsets"][0].get<size_t>(); }
  static size_t SizeOf(const nlohmann::json& entry) {
    return entry["data_offsets"][1].get<size_t>() - entry["data_offsets"][0].get<size_t>();
  }

  std::string file_;
  nlohmann::json header_;
  const char* data_ = nullptr;
};

const Peers& Golden() {
  static const Peers peers;
  return peers;
}

Recipe BlockRecipe(Preset preset, ScaleFormat format = ScaleFormat::kFp32) {
  return {.fp8 = true, .granularity = Granularity::kBlock, .scale_format = format, .preset = preset};
}

class GoldenTest : public testing::EachSimdLevel {
 protected:
  void ExpectSameBytes(const std::string& recipe_name, const Recipe& recipe, const std::string& except = "") {
    int compared = 0;
    for (const std::string& test : Golden().Cases()) {
      if (test == except) continue;
      const Encoded ours = EncodeWhole(Golden().Input(test), recipe), theirs = Golden().Output(test, recipe_name);
      EXPECT_TRUE(ours.codes == theirs.codes) << test << "." << recipe_name << ": codes";
      EXPECT_EQ(ours.scale_bits, theirs.scale_bits) << test << "." << recipe_name << ": scales";
      ++compared;
    }
    EXPECT_EQ(compared, except.empty() ? 14 : 13);
  }
};
INSTANTIATE_FOR_EACH_SIMD_LEVEL(GoldenTest);

TEST_P(GoldenTest, DeepGemm) { ExpectSameBytes("deepgemm", BlockRecipe(Preset::kDeepGemm)); }
TEST_P(GoldenTest, DeepGemmUe8m0) {
  ExpectSameBytes("deepgemm_ue8m0", BlockRecipe(Preset::kDeepGemm, ScaleFormat::kPow2));
}
// Nothing to agree with: what the peers multiply with is infinite there, so zeros become NaN codes.
constexpr char kSubnormal[] = "subnormal_128x128";

TEST_P(GoldenTest, NemoButForSubnormals) { ExpectSameBytes("nemo", BlockRecipe(Preset::kNemo), kSubnormal); }
TEST_P(GoldenTest, DefaultIsIeeeButForSubnormals) {
  ExpectSameBytes("ieee", BlockRecipe(Preset::kDefault), kSubnormal);
}

// What the peers have there, to the byte, so that this exception is as wide as it is said to be: 0 * inf for zeros,
// +-inf saturated for all else, and in nemo's case a scale of 0, which makes even those nothing.
TEST_P(GoldenTest, SubnormalsGiveNumbersWhereNemoAndIeeeGiveNaN) {
  const Tensor input = Golden().Input(kSubnormal);
  constexpr float kFloor = std::numeric_limits<float>::min();
  constexpr uint32_t kNemoScale = 0, kIeeeScale = 0x00001DB7;  // of the peers
  for (const auto& [peer, preset, scale, peer_scale] : {std::tuple{"nemo", Preset::kNemo, 1.0f, kNemoScale},
                                                        std::tuple{"ieee", Preset::kDefault, kFloor, kIeeeScale}}) {
    const Encoded ours = EncodeWhole(input, BlockRecipe(preset)), theirs = Golden().Output(kSubnormal, peer);
    ASSERT_EQ(theirs.scale_bits, std::vector<uint32_t>{peer_scale}) << peer;
    ASSERT_EQ(ours.scale_bits, std::vector<uint32_t>{std::bit_cast<uint32_t>(scale)}) << peer;
    for (size_t i = 0; i < ours.codes.size(); ++i) {
      const float x = input.At(static_cast<int64_t>(i));
      const uint8_t infinite = std::signbit(x) ? 0xFE : 0x7E;
      ASSERT_EQ(theirs.codes[i], x == 0 ? 0x7F : infinite) << peer << " at " << i;
      ASSERT_EQ(ours.codes[i], EncodeE4M3(x * (1 / scale))) << peer << " at " << i;
      ASSERT_LE(std::fabs(DecodeE4M3(ours.codes[i]) * scale - x), std::max(std::fabs(x) / 16, scale / 1024))
          << peer << " at " << i;
    }
  }
}

// Triton divides with div.full.f32, which may miss the last bit. All scales agree; in one case, the codes are those of
// a reciprocal 1/s that is one step of fp32 higher, all 65,536 of them.
TEST_P(GoldenTest, VerlButForOneStepOfTheGpusReciprocal) {
  const std::string deviating = "powers_of_two_256x256";
  ExpectSameBytes("verl_triton", BlockRecipe(Preset::kVerl), deviating);
  const Tensor input = Golden().Input(deviating);
  const Encoded ours = EncodeWhole(input, BlockRecipe(Preset::kVerl)),
                theirs = Golden().Output(deviating, "verl_triton");
  ASSERT_EQ(ours.scale_bits, theirs.scale_bits);
  int differing = 0;
  for (int64_t i = 0; i < input.rows * input.cols; ++i) {
    const uint32_t scale = ours.scale_bits[static_cast<size_t>(i / input.cols / 128 * 2 + i % input.cols / 128)];
    const float one_up = std::nextafter(1.0f / std::bit_cast<float>(scale), 1.0f);
    const auto at = static_cast<size_t>(i);
    ASSERT_EQ(theirs.codes[at], EncodeE4M3(input.At(i) * one_up)) << i;
    if (ours.codes[at] != theirs.codes[at]) ++differing;
  }
  EXPECT_EQ(differing, 1045);  // every +-8192 of the input: its product with 1/s lies one step of fp32 below a tie
}

}  // namespace
}  // namespace wsync
