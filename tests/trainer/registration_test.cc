#include "server/trainer/registration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/trainer/testing.h"

namespace wsync {
namespace {

using ::testing::HasSubstr;

class RegistrationTest : public ::testing::Test {
 protected:
  absl::Status Try(RegistrationRequest request) {
    return Registration::Create(std::move(request), RawRules(), kMinBucketBytes, backend_.memory()).status();
  }
  FakeBackend backend_;
};

TEST_F(RegistrationTest, LocatesEveryTensorInItsMemory) {
  const auto registration = TestRegistration(backend_, 3);
  const std::byte* base = backend_.Lend("/weights", 3 * kTestTensorBytes);
  EXPECT_THAT(registration->addresses(),
              ::testing::ElementsAre(base, base + kTestTensorBytes, base + 2 * kTestTensorBytes));
  EXPECT_EQ(registration->Info().buckets, 3);
  EXPECT_EQ(registration->Info().plan_hash, registration->plan()->hash());
}

TEST_F(RegistrationTest, TensorOutsideItsMemoryIsNamed) {
  RegistrationRequest request = TestRequest(backend_, 2);
  request.places[1].offset_bytes += 4;
  const absl::Status status = Try(std::move(request));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("'layers.1.weight'"));
}

TEST_F(RegistrationTest, OffsetThatWrapsAroundIsRefused) {
  RegistrationRequest request = TestRequest(backend_, 1);
  request.places[0].offset_bytes = UINT64_MAX - 3;
  EXPECT_TRUE(absl::IsInvalidArgument(Try(std::move(request))));
}

TEST_F(RegistrationTest, UnknownHandleIsNamed) {
  RegistrationRequest request = TestRequest(backend_, 2);
  request.places[0].handle = 7;
  EXPECT_THAT(std::string(Try(std::move(request)).message()), HasSubstr("'layers.0.weight' lies in memory handle 7"));
}

TEST_F(RegistrationTest, MisalignedTensorIsNamed) {
  RegistrationRequest request = TestRequest(backend_, 2);
  request.tensors[0].shape = {127, 128};
  request.places[0].offset_bytes = 2;
  EXPECT_THAT(std::string(Try(std::move(request)).message()), HasSubstr("'layers.0.weight' at offset 2"));
}

TEST_F(RegistrationTest, MissingMemoryIsNotFoundAndNamedByWhatLiesInIt) {
  RegistrationRequest request = TestRequest(backend_, 2);
  request.handles.push_back(SharedMemoryHandle{"/gone", kTestTensorBytes});
  request.places[1] = {.handle = static_cast<uint32_t>(request.handles.size() - 1), .offset_bytes = 0};
  const absl::Status status = Try(std::move(request));
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("where tensor 'layers.1.weight' lies"));
}

TEST_F(RegistrationTest, CatalogErrorsComeThrough) {
  RegistrationRequest request = TestRequest(backend_, 2);
  request.tensors[1].name = request.tensors[0].name;
  EXPECT_TRUE(absl::IsInvalidArgument(Try(std::move(request))));
}

TEST_F(RegistrationTest, WeightsQuantizedAlreadyInAnotherWayAreRefusedUnlessAllStayAsTheyAre) {
  const auto mixed = [this] {
    RegistrationRequest request = TestRequest(backend_, 2);
    request.tensors[0] = {"model.layers.0.mlp.up_proj.weight", Dtype::kF32, {128, 128}};
    request.tensors[1] = {"model.layers.0.mlp.down_proj.weight", Dtype::kF8E4M3, {128, 128}};
    return request;
  };
  const auto refused = Registration::Create(mixed(), RecipeRules{}, kMinBucketBytes, backend_.memory());
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("'model.layers.0.mlp.down_proj.weight' is quantized already: F8_E4M3 without scales"));
  EXPECT_TRUE(Try(mixed()).ok());
}

TEST_F(RegistrationTest, CheckpointsOwnListIsAddedToTheRules) {
  RegistrationRequest request = TestRequest(backend_, 2);
  for (Tensor& tensor : request.tensors) tensor.name = "model." + tensor.name;
  request.tensors[0].name = "model.layers.0.mlp.up_proj.weight";
  request.tensors[1].name = "model.layers.1.mlp.up_proj.weight";
  request.modules_to_not_convert = {"model.layers.1.mlp"};
  const auto registration = Registration::Create(std::move(request), RecipeRules{}, kMinBucketBytes, backend_.memory());
  ASSERT_TRUE(registration.ok()) << registration.status();
  EXPECT_EQ((*registration)->Info().quantized_tensors, 1);
}

TEST_F(RegistrationTest, OwnerThatNeverWasIsRefused) {
  for (const int64_t pid : {int64_t{0}, int64_t{-1}, int64_t{1} << 40}) {
    RegistrationRequest request = TestRequest(backend_, 1);
    request.pid = pid;
    EXPECT_THAT(std::string(Try(std::move(request)).message()), HasSubstr("there is no process"));
  }
}

}  // namespace
}  // namespace wsync
