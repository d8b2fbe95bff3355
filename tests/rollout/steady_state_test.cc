// What a version costs a sink once its catalog was received before: no tables, and no memory that grows with the number
// of tensors, into an engine as it attaches. On the host backend, with a wire that is a copy.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "server/core/ring.h"
#include "server/rollout/attachment.h"
#include "server/rollout/receive_pipeline.h"
#include "tests/backend/contract/encoded_model.h"
#include "tests/backend/host_agent.h"
#include "tests/core/allocation_count.h"
#include "tests/rollout/source_testing.h"

namespace wsync {
namespace {

constexpr int64_t kTensors = 50'000;

std::vector<Tensor> ManyTensors() {
  // The first one fills buckets, as it is.
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", Dtype::kBF16, {1 << 14, 128}}};
  for (int64_t i = 0; i < kTensors; ++i) {
    tensors.push_back({absl::StrCat("layers.", i, ".up_proj.weight"), Dtype::kBF16, {2, 4}});
  }
  return tensors;
}

// Gives the buckets of one image, version after version.
class CopyingTransport final : public Transport {
 public:
  explicit CopyingTransport(const std::vector<std::byte>* image) : image_(image) {}
  absl::Status Connect(absl::Time) override { return absl::OkStatus(); }
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) override {
    EXPECT_TRUE(after == nullptr || after->Wait(absl::InfiniteFuture()).ok());
    std::memcpy(data, image_->data() + next_, static_cast<size_t>(bytes));
    next_ = (next_ + bytes) % static_cast<int64_t>(image_->size());
    return nullptr;
  }
  void Cancel(const absl::Status&) override {}
  int64_t moved_bytes() const override { return next_; }

 private:
  const std::vector<std::byte>* const image_;
  int64_t next_ = 0;
};

class SinkSteadyStateTest : public ::testing::Test {
 protected:
  SinkSteadyStateTest() : model_(ManyTensors(), {}, int64_t{1} << 20), backend_({.threads = 2}) {
    image_ = model_.EncodeImage(&digests_);
    memory_ = *backend_.memory().Allocate(plan().image_bytes(), "receive memory");
  }
  void Attach(SinkMode mode) {
    int64_t bytes = 0;
    AttachSpec spec{.engine = "an engine", .destinations = WholeDestinations(plan(), &bytes)};
    MemoryHandle handle;
    engine_ = *backend_.memory().AllocateShared(bytes, "an engine", &handle);
    spec.handles.push_back(handle);
    auto attachment = Attachment::Create(backend_, std::move(spec), mode, /*ring_slots=*/3, model_.plan());
    ASSERT_TRUE(attachment.ok()) << attachment.status();
    attachment_ = *std::move(attachment);
  }
  ReceiveContext Context(Transport& transport) {
    return {plan(), transport, *attachment_->loader(), absl::Seconds(30), &bucket_};
  }
  const Plan& plan() const { return *model_.plan(); }
  void ExpectSteady(const std::function<void()>& version) {
    version();
    for (int i = 0; i < 3; ++i) {
      const AllocationCount count;
      version();
      EXPECT_LT(count.bytes(), kTensors) << "a table of anything takes a byte per tensor, or more";
    }
  }

  const contract::EncodedModel model_;
  host::HostBackend backend_;
  std::vector<uint64_t> digests_;
  std::vector<std::byte> image_;
  std::unique_ptr<Buffer> engine_, memory_;
  std::unique_ptr<Attachment> attachment_;
  std::atomic<int64_t> bucket_ = -1;
};

TEST_F(SinkSteadyStateTest, ASecondVersionThatIsStagedAndAppliedBuildsNoTables) {
  ASSERT_NO_FATAL_FAILURE(Attach(SinkMode::kStaged));
  CopyingTransport transport(&image_);
  const ReceiveContext context = Context(transport);
  ExpectSteady([&] {
    const sink::Received received = ReceiveImage(context, memory_->data());
    ASSERT_TRUE(received.status.ok()) << received.status;
    EXPECT_EQ(received.digest, plan().ContentDigest(digests_));
    ASSERT_TRUE(ApplyImage(*attachment_->loader(), memory_->data()).status.ok());
  });
}

// With buckets through the ring, buckets that are received where they are served, and digest tables that are kept.
TEST_F(SinkSteadyStateTest, ASecondVersionInPlaceBuildsNoTables) {
  ASSERT_NO_FATAL_FAILURE(Attach(SinkMode::kInPlace));
  const auto direct = attachment_->direct();
  ASSERT_GT(std::count_if(direct.begin(), direct.end(), [](const std::byte* at) { return at != nullptr; }), 0);
  CopyingTransport transport(&image_);
  const ReceiveContext context = Context(transport);
  ExpectSteady([&] {
    const sink::Received received = ReceiveInPlace(context, memory_->data(), /*slots=*/3, direct);
    ASSERT_TRUE(received.status.ok()) << received.status;
    EXPECT_EQ(received.digest, plan().ContentDigest(digests_));
  });
  const auto live = attachment_->Verify(backend_, model_.plan(), nullptr, [] { return false; });
  ASSERT_TRUE(live.ok()) << live.status();
  EXPECT_EQ(*live, plan().ContentDigest(digests_));
}

}  // namespace
}  // namespace wsync
