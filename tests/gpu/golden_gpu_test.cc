// The encode kernel against what published quantizers really gave: tests/data/peers.safetensors. WSYNC_TEST_DATA in the
// environment says where that is when the test runs elsewhere than it was built.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "client/checkpoint/safetensors.h"
#include "gpu_testing.h"

namespace wsync::cuda {
namespace {

using namespace wsync::cuda::testing;  // NOLINT: the vocabulary of this file

class GoldenGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    const char* folder = std::getenv("WSYNC_TEST_DATA");
    auto file = SafetensorsFile::Open(std::string(folder != nullptr ? folder : WSYNC_TEST_DATA) + "/peers.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }

  const TensorView& Find(const std::string& name) const {
    for (const TensorView& view : file_->tensors()) {
      if (view.tensor.name == name) return view;
    }
    ADD_FAILURE() << "the golden file has no '" << name << "'";
    return file_->tensors().front();
  }

  // Every case of the file in one bucket.
  void ExpectSameBytes(const std::string& recipe_name, Preset preset, ScaleFormat format, const std::string& except) {
    std::vector<Source> sources;
    std::vector<std::string> cases;
    for (const TensorView& view : file_->tensors()) {
      const std::string& name = view.tensor.name;
      if (!name.ends_with(".x") || name == except + ".x") continue;
      const auto* bytes = reinterpret_cast<const uint8_t*>(view.data);
      sources.push_back({.bytes = std::vector<uint8_t>(bytes, bytes + view.bytes),
                         .recipe = {.fp8 = true, .scale_format = format, .preset = preset},
                         .rows = view.tensor.shape[0],
                         .cols = view.tensor.shape[1]});
      cases.push_back(name.substr(0, name.size() - 2));
    }
    ASSERT_EQ(cases.size(), except.empty() ? 14 : 13);
    const BucketLayout layout = LayOut(sources);
    const Image image = GpuEncoder({sources}).Encode()[0];
    for (size_t i = 0; i < cases.size(); ++i) {
      const TensorView &codes = Find(cases[i] + "." + recipe_name + ".q"),
                       &scales = Find(cases[i] + "." + recipe_name + ".s");
      EXPECT_EQ(
          std::memcmp(image.wire.data() + layout.pieces[i].data_offset, codes.data, static_cast<size_t>(codes.bytes)),
          0)
          << cases[i] << "." << recipe_name << ": codes";
      EXPECT_EQ(std::memcmp(image.wire.data() + layout.pieces[i].scale_offset, scales.data,
                            static_cast<size_t>(scales.bytes)),
                0)
          << cases[i] << "." << recipe_name << ": scales";
    }
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
};

// Where the peer's own 1/s is infinite there is nothing to agree with: see golden_test.cc.
constexpr char kSubnormal[] = "subnormal_128x128";

TEST_F(GoldenGpuTest, DeepGemm) { ExpectSameBytes("deepgemm", Preset::kDeepGemm, ScaleFormat::kFp32, ""); }
TEST_F(GoldenGpuTest, DeepGemmUe8m0) { ExpectSameBytes("deepgemm_ue8m0", Preset::kDeepGemm, ScaleFormat::kPow2, ""); }
TEST_F(GoldenGpuTest, NemoButForSubnormals) { ExpectSameBytes("nemo", Preset::kNemo, ScaleFormat::kFp32, kSubnormal); }
TEST_F(GoldenGpuTest, DefaultIsIeeeButForSubnormals) {
  ExpectSameBytes("ieee", Preset::kDefault, ScaleFormat::kFp32, kSubnormal);
}
TEST_F(GoldenGpuTest, VerlAsTritonGivesItInEveryCase) {
  ExpectSameBytes("verl_triton", Preset::kVerl, ScaleFormat::kFp32, "");
}

}  // namespace
}  // namespace wsync::cuda
