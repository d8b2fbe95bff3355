// A client truncates what it lent, while an agent reads it, writes it or receives into it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/guarded_range.h"
#include "tests/backend/contract/encoded_model.h"
#include "tests/backend/host_agent.h"

namespace wsync::host {
namespace {

using contract::EncodedModel;
using contract::FailsWith;
using contract::HangDeadline;
using contract::WaitFor;

constexpr int64_t kRows = 4096;
constexpr int64_t kCols = 512;

// Memory of another process, as far as the agent knows: it is mapped from what this object owns.
class Lent {
 public:
  Lent(Backend& backend, int64_t bytes) : fd_(memfd_create("wsync-test", MFD_CLOEXEC)), bytes_(bytes) {
    EXPECT_EQ(posix_fallocate(fd_, 0, bytes), 0);
    auto opened = backend.memory().Open(handle(), Access::kReadWrite);
    EXPECT_TRUE(opened.ok()) << opened.status();
    buffer_ = *std::move(opened);
  }
  ~Lent() { close(fd_); }
  SharedMemoryHandle handle() const { return {absl::StrCat("/proc/", getpid(), "/fd/", fd_), bytes_}; }
  void CutTo(int64_t bytes) { EXPECT_EQ(ftruncate(fd_, bytes), 0); }
  std::byte* data() { return buffer_->data(); }

 private:
  const int fd_;
  const int64_t bytes_;
  std::unique_ptr<Buffer> buffer_;
};

class HostCutMemoryTest : public testing::Test {
 protected:
  Backend& backend() { return agent_.backend(); }

  HostAgent agent_;
  // Two tensors of 4 MiB; each is lent by itself. Everything is one bucket.
  const EncodedModel model_{{{"first", Dtype::kBF16, {kRows, kCols}}, {"second", Dtype::kBF16, {kRows, kCols}}},
                            RecipeRules{},
                            int64_t{64} << 20};
  const int64_t bytes_ = kRows * kCols * 2;
};

TEST_F(HostCutMemoryTest, ReadingWhatWasCutGivesZerosAndAMarkInsteadOfASignal) {
  Lent lent(backend(), bytes_);
  std::memset(lent.data(), 1, static_cast<size_t>(bytes_));
  const CutMark mark = CutMarkAt(lent.data() + bytes_ - 1);
  EXPECT_FALSE(mark.cut());
  lent.CutTo(0);
  EXPECT_EQ(lent.data()[bytes_ - 1], std::byte{0});
  EXPECT_TRUE(mark.cut());
  lent.data()[0] = std::byte{2};  // goes nowhere, and harms nobody
}

TEST_F(HostCutMemoryTest, AWeightThatIsCutFailsItsEncodeByNameAndEveryLaterOne) {
  Lent first(backend(), bytes_), second(backend(), bytes_);
  auto quantizer = backend().NewQuantizer(model_.plan(), {first.data(), second.data()});
  ASSERT_TRUE(quantizer.ok()) << quantizer.status();
  auto image = backend().memory().Allocate(model_.plan()->image_bytes(), "a test");
  ASSERT_TRUE(image.ok());
  ASSERT_TRUE(WaitFor((*quantizer)->Encode(0, (*image)->data(), nullptr)).ok());
  ASSERT_TRUE((*quantizer)->Finish(HangDeadline()).ok());
  second.CutTo(bytes_ / 2);
  for (int version = 0; version < 2; ++version) {
    const auto cut = FailsWith(absl::StatusCode::kFailedPrecondition, "'second' was cut short");
    EXPECT_THAT(WaitFor((*quantizer)->Encode(0, (*image)->data(), nullptr)), cut);
    EXPECT_THAT((*quantizer)->Finish(HangDeadline()).status(), cut);
  }
}

TEST_F(HostCutMemoryTest, WhatOneClientCutsIsNoOtherClientsMatter) {
  Lent gone(backend(), bytes_), first(backend(), bytes_), second(backend(), bytes_);
  gone.CutTo(0);
  EXPECT_EQ(gone.data()[0], std::byte{0});
  auto quantizer = backend().NewQuantizer(model_.plan(), {first.data(), second.data()});
  ASSERT_TRUE(quantizer.ok());
  auto image = backend().memory().Allocate(model_.plan()->image_bytes(), "a test");
  ASSERT_TRUE(image.ok());
  EXPECT_TRUE(WaitFor((*quantizer)->Encode(0, (*image)->data(), nullptr)).ok());
  EXPECT_TRUE((*quantizer)->Finish(HangDeadline()).ok());
}

TEST_F(HostCutMemoryTest, ANameIsGuardedAnewWhenItsPlaceIsTakenAgain) {
  {
    Lent cut(backend(), bytes_);
    cut.CutTo(0);
    EXPECT_EQ(cut.data()[0], std::byte{0});
  }
  Lent whole(backend(), bytes_);
  EXPECT_FALSE(CutMarkAt(whole.data()).cut());
}

// A loader that copies the whole of bucket 0, as it is on the wire, to the start of its one handle.
class HostCutLoaderTest : public HostCutMemoryTest {
 protected:
  std::unique_ptr<Loader> NewLoader(std::byte* to) {
    const int64_t bytes = model_.plan()->buckets()[0].wire_bytes;
    ScatterTable table;
    table.copies.push_back({.source_pitch = bytes, .dest_pitch = bytes, .rows = 1, .row_bytes = bytes});
    table.bucket_begin = {0, 1};
    auto loader = backend().NewLoader(model_.plan(), table, {to});
    EXPECT_TRUE(loader.ok()) << loader.status();
    return *std::move(loader);
  }
};

TEST_F(HostCutLoaderTest, AnApplyIntoMemoryThatWasCutFails) {
  const int64_t wire = model_.plan()->image_bytes();
  Lent engine(backend(), wire);
  auto image = backend().memory().Allocate(wire, "a test");
  ASSERT_TRUE(image.ok());
  auto loader = NewLoader(engine.data());
  engine.CutTo(4096);
  const auto cut = FailsWith(absl::StatusCode::kFailedPrecondition, "cut short");
  EXPECT_THAT(WaitFor(loader->Apply(0, (*image)->data(), nullptr)), cut);
  EXPECT_THAT(loader->Finish(HangDeadline()).status(), cut);
  EXPECT_THAT(WaitFor(loader->ApplyAll((*image)->data(), nullptr)), cut);
  EXPECT_THAT(loader->Finish(HangDeadline()).status(), cut);
  EXPECT_TRUE(loader->wrote());
}

TEST_F(HostCutLoaderTest, ReadingBackMemoryThatWasCutFails) {
  const int64_t wire = model_.plan()->image_bytes();
  Lent engine(backend(), wire);
  auto scratch = backend().memory().Allocate(wire, "a test");
  ASSERT_TRUE(scratch.ok());
  auto loader = NewLoader((*scratch)->data());
  engine.CutTo(0);
  const auto cut = FailsWith(absl::StatusCode::kFailedPrecondition, "cut short");
  EXPECT_THAT(WaitFor(loader->Apply(0, engine.data(), nullptr)), cut);
  EXPECT_THAT(loader->Finish(HangDeadline()).status(), cut);
}

TEST_F(HostCutLoaderTest, ACheckOfABucketInMemoryThatWasCutSaysThatAndNotThatBytesWereDamaged) {
  Lent engine(backend(), model_.plan()->image_bytes());
  auto loader = backend().NewLoader(model_.plan(), {}, {});
  ASSERT_TRUE(loader.ok());
  engine.CutTo(0);
  EXPECT_THAT(WaitFor((*loader)->Check(0, engine.data(), nullptr)),
              FailsWith(absl::StatusCode::kFailedPrecondition, "cut short"));
}

TEST(GuardedRangeDeathTest, AFaultOutsideOfWhatIsGuardedEndsTheProcessAsBefore) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto fault = [] {
    const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const int guarded = memfd_create("wsync-test", MFD_CLOEXEC), plain = memfd_create("wsync-test", MFD_CLOEXEC);
    void* const one = mmap(nullptr, size, PROT_READ, MAP_SHARED, guarded, 0);
    const auto* const two = static_cast<const volatile char*>(mmap(nullptr, size, PROT_READ, MAP_SHARED, plain, 0));
    const auto guard = GuardedRange::Create(one, static_cast<int64_t>(size));
    (void)*two;
  };
  EXPECT_DEATH(fault(), "");  // by SIGBUS, or in a sanitizer's own way
}

}  // namespace
}  // namespace wsync::host
