// What a version costs the source once its catalog was published before: no tables, and no memory that grows with the
// number of tensors. On the host backend; what a backend does beyond these interfaces is its own.
#include <gtest/gtest.h>

#include "server/backend/host/backend.h"
#include "server/trainer/publisher.h"
#include "tests/core/allocation_count.h"
#include "tests/trainer/testing.h"

namespace wsync {
namespace {

constexpr int64_t kTensors = 50'000;
constexpr int64_t kTensorBytes = 2 * 8;

class SteadyStateTest : public ::testing::TestWithParam<SourceMode> {
 protected:
  SteadyStateTest() : backend_({.threads = 2}) {}

  std::shared_ptr<const Registration> Register() {
    RegistrationRequest request;
    request.pid = getpid();
    MemoryHandle handle;
    weights_ = *backend_.memory().AllocateShared(kTensors * kTensorBytes, "weights", &handle);
    request.handles.push_back(handle);
    for (int64_t i = 0; i < kTensors; ++i) {
      request.tensors.push_back({absl::StrCat("layers.", i, ".up_proj.weight"), Dtype::kBF16, {2, 4}});
      request.places.push_back({0, static_cast<uint64_t>(i * kTensorBytes)});
    }
    auto registration = Registration::Create(std::move(request), {}, kDefaultBucketBytes, backend_.memory());
    EXPECT_TRUE(registration.ok()) << registration.status();
    return *registration;
  }

  host::HostBackend backend_;
  std::unique_ptr<Buffer> weights_;
  EventRecord events_;
};

TEST_P(SteadyStateTest, ASecondPublishOfACatalogBuildsNoTables) {
  Publisher publisher({.mode = GetParam()}, &backend_, [this](Event event) { events_.Add(std::move(event)); });
  ASSERT_TRUE(publisher.Adopt(Register()).ok());
  const auto publish = [&](uint64_t version) {
    publisher.Start({version, version, "token", /*world=*/1, /*encode=*/true});
    EXPECT_EQ(events_.Await<event::SourceSent>(version - 1).version, version);
  };
  publish(1);
  for (uint64_t version = 2; version <= 4; ++version) {
    const AllocationCount count;
    publish(version);
    EXPECT_LT(count.bytes(), kTensors) << "a table of anything takes a byte per tensor, or more";
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SteadyStateTest, ::testing::Values(SourceMode::kFull, SourceMode::kRing),
                         [](const auto& mode) { return mode.param == SourceMode::kFull ? "full" : "ring"; });

}  // namespace
}  // namespace wsync
