// Holds the encoder to the worked example of proto/README.md, byte by byte.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels/quantize.h"
#include "server/core/plan.h"

namespace wsync {
namespace {

std::vector<std::byte> Bf16(const std::vector<float>& values) {
  std::vector<std::byte> bytes(2 * values.size());
  for (size_t i = 0; i < values.size(); ++i)
    std::memcpy(&bytes[2 * i], reinterpret_cast<const char*>(&values[i]) + 2, 2);
  return bytes;
}

TEST(WorkedExample, BucketHasTheBytesOfTheProtocolPage) {
  auto catalog = Catalog::Create({{"a.weight", Dtype::kBF16, {2, 3}}, {"a.bias", Dtype::kBF16, {3}}});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  const auto plan = Plan::Create(std::make_shared<Catalog>(*std::move(catalog)), RecipeRules(), kMinBucketBytes);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ((*plan)->buckets().size(), 1u);
  ASSERT_EQ((*plan)->pieces().size(), 2u);
  const Bucket& bucket = (*plan)->buckets()[0];
  EXPECT_EQ(bucket.digest_offset, 384);
  EXPECT_EQ(bucket.wire_bytes, 512);

  const std::vector<std::vector<std::byte>> sources = {Bf16({1, -2, 0.5, 3.5, -7, 0}), Bf16({1, -1, 0.25})};
  std::vector<std::byte> wire(bucket.wire_bytes);
  for (size_t i = 0; i < 2; ++i) {
    const Piece& piece = (*plan)->pieces()[i];
    EncodeTask task;
    task.source = sources[piece.tensor].data();
    task.rows = piece.rows;
    task.cols = ViewOf((*plan)->catalog().tensors()[piece.tensor]).cols;
    task.recipe = (*plan)->RecipeOf(piece);
    task.data = wire.data() + piece.data_offset;
    task.scales = wire.data() + piece.scale_offset;
    const EncodeResult result = Encode(task);
    EXPECT_EQ(result.first_nonfinite, kNoIndex);
    std::memcpy(wire.data() + bucket.digest_offset + 8 * i, &result.digest, 8);
  }
  std::string want(bucket.wire_bytes, '\0');
  const auto put = [&want](size_t offset, const std::string& bytes) { want.replace(offset, bytes.size(), bytes); };
  put(0, std::string("\x68\xf0\x60\x76\xfe\x00", 6));
  put(128, std::string("\x00\x00\x80\x3c", 4));
  put(256, "\x80\x3f\x80\xbf\x80\x3e");
  put(384, "\x08\x1e\xb5\xdf\x6f\x71\xb9\x4b");
  put(392, "\x94\x60\x02\xa2\xde\x7d\x97\x97");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(wire.data()), wire.size()), want);
}

}  // namespace
}  // namespace wsync
