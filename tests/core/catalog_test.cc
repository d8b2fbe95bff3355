#include "server/core/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(std::vector<Tensor> tensors) {
  const auto catalog = Catalog::Create(std::move(tensors));
  if (catalog.ok()) return "accepted";
  EXPECT_EQ(catalog.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(catalog.status().message());
}

Hash128 FingerprintOf(std::vector<Tensor> tensors) { return Catalog::Create(std::move(tensors))->fingerprint(); }

TEST(Catalog, KeepsOrderAndFindsByName) {
  auto catalog = Catalog::Create({{"b", Dtype::kBF16, {2, 3}}, {"a", Dtype::kF32, {5}}});
  ASSERT_TRUE(catalog.ok());
  const Catalog moved = *std::move(catalog);  // the index must follow
  EXPECT_EQ(moved.tensors()[0].name, "b");
  EXPECT_EQ(moved.Find("b"), 0);
  EXPECT_EQ(moved.Find("a"), 1);
  EXPECT_EQ(moved.Find("c"), -1);
  EXPECT_EQ(moved.total_bytes(), 2 * 3 * 2 + 5 * 4);
}

TEST(Catalog, SeesEveryShapeAsAMatrix) {
  const auto view = [](std::vector<int64_t> shape) {
    const MatrixView v = ViewOf({"t", Dtype::kBF16, std::move(shape)});
    return std::pair(v.rows, v.cols);
  };
  EXPECT_EQ(view({}), std::pair(int64_t{1}, int64_t{1}));
  EXPECT_EQ(view({7}), std::pair(int64_t{1}, int64_t{7}));
  EXPECT_EQ(view({3, 7}), std::pair(int64_t{3}, int64_t{7}));
  EXPECT_EQ(view({2, 3, 7}), std::pair(int64_t{6}, int64_t{7}));
  EXPECT_EQ(view({0, 7}), std::pair(int64_t{0}, int64_t{7}));
  EXPECT_EQ(BytesOf({"t", Dtype::kF32, {}}), 4);
  EXPECT_EQ(BytesOf({"t", Dtype::kF32, {0, 7}}), 0);
}

TEST(Catalog, RefusesWhatItCannotDescribe) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("no tensors"));
  EXPECT_THAT(ErrorOf({{"a", Dtype::kBF16, {1}}, {"", Dtype::kBF16, {1}}}), HasSubstr("tensor 1 has an empty name"));
  EXPECT_THAT(ErrorOf({{"a\nb", Dtype::kBF16, {1}}}), HasSubstr("'a\\nb') has control characters"));
  EXPECT_THAT(ErrorOf({{std::string(kMaxNameBytes + 1, 'x'), Dtype::kBF16, {1}}}), HasSubstr("has 513 bytes"));
  EXPECT_THAT(ErrorOf({{"a", Dtype::kBF16, {1}}, {"b", Dtype::kF32, {1}}, {"a", Dtype::kBF16, {2}}}),
              HasSubstr("'a' was registered twice (tensors 0 and 2)"));
  EXPECT_THAT(ErrorOf({{"a", Dtype::kBF16, {4, -1}}}), HasSubstr("'a' of shape [4, -1] has a negative dimension"));
  EXPECT_THAT(ErrorOf({{"a", Dtype::kBF16, std::vector<int64_t>(9, 1)}}), HasSubstr("has 9 dimensions"));
  EXPECT_THAT(ErrorOf({{"a", static_cast<Dtype>(77), {1}}}), HasSubstr("unknown dtype (number 77)"));
}

TEST(Catalog, RefusesSizesThatWouldOverflow) {
  const int64_t huge = int64_t{1} << 40;
  EXPECT_THAT(ErrorOf({{"a", Dtype::kBF16, {huge, huge}}}), HasSubstr("4 TiB"));
  EXPECT_THAT(ErrorOf({{"a", Dtype::kBF16, {huge, huge, 0}}}), HasSubstr("4 TiB"));
  EXPECT_THAT(ErrorOf({{"a", Dtype::kU8, {kMaxTensorBytes + 1}}}), HasSubstr("4 TiB"));
  EXPECT_EQ(ErrorOf({{"a", Dtype::kU8, {kMaxTensorBytes}}}), "accepted");
  EXPECT_EQ(ErrorOf({{"a", Dtype::kBF16, {huge, 0}}}), "accepted");
  std::vector<Tensor> many;
  for (int i = 0; i <= kMaxCatalogBytes / kMaxTensorBytes; ++i) {
    many.push_back({absl::StrCat("t", i), Dtype::kU8, {kMaxTensorBytes}});
  }
  EXPECT_THAT(ErrorOf(std::move(many)), HasSubstr("1 EiB"));
}

TEST(Catalog, FingerprintChangesWithNameDtypeShapeAndOrder) {
  const Tensor a{"a", Dtype::kBF16, {2, 3}}, b{"b", Dtype::kBF16, {2, 3}};
  const Hash128 reference = FingerprintOf({a, b});
  EXPECT_EQ(FingerprintOf({a, b}), reference);
  EXPECT_NE(FingerprintOf({b, a}), reference);
  EXPECT_NE(FingerprintOf({a}), reference);
  EXPECT_NE(FingerprintOf({a, {"c", Dtype::kBF16, {2, 3}}}), reference);
  EXPECT_NE(FingerprintOf({a, {"b", Dtype::kF16, {2, 3}}}), reference);
  EXPECT_NE(FingerprintOf({a, {"b", Dtype::kBF16, {3, 2}}}), reference);
  EXPECT_NE(FingerprintOf({a, {"b", Dtype::kBF16, {6}}}), reference);
  EXPECT_NE(FingerprintOf({a, {"b", Dtype::kBF16, {2, 3, 1}}}), reference);
}

}  // namespace
}  // namespace wsync
