// What the CUDA backend knows without a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "server/backend/cuda/backend.h"
#include "server/backend/cuda/device.h"
#include "server/backend/cuda/nccl_environment.h"
#include "server/backend/cuda/nccl_library.h"
#include "tests/backend/cuda_agent.h"

namespace wsync::cuda {
namespace {

using contract::FailsWith;

TEST(NcclFingerprint, HasWhatEveryRankMustShareInOneOrderAndNothingOfTheHostsOwn) {
  const char* const one[] = {"HOME=/root",     "NCCL_PROTO=Simple", "NCCL_SOCKET_IFNAME=eth0",
                             "NCCL_ALGO=Ring", "NCCL_DEBUG=INFO",   nullptr};
  const char* const other[] = {"NCCL_ALGO=Ring", "NCCL_SOCKET_IFNAME=ib0", "NCCL_PROTO=Simple", "NCCL_HOME=/opt/nccl",
                               nullptr};
  EXPECT_EQ(NcclFingerprint(22809, 0, one), "nccl 2.28.9; NCCL_ALGO=Ring; NCCL_PROTO=Simple");
  EXPECT_EQ(NcclFingerprint(22809, 0, one), NcclFingerprint(22809, 0, other));
  EXPECT_EQ(NcclFingerprint(22803, 16, one), "nccl 2.28.3; max_ctas 16; NCCL_ALGO=Ring; NCCL_PROTO=Simple");
  const char* const nothing[] = {nullptr};
  EXPECT_EQ(NcclFingerprint(21800, 0, nothing), "nccl 2.18.0");
}

TEST(NcclToken, IsTheUniqueIdAsText) {
  ncclUniqueId id = {};
  for (size_t i = 0; i < sizeof(id.internal); ++i) id.internal[i] = static_cast<char>(200 - i);
  const std::string token = TokenOf(id);
  EXPECT_EQ(token.size(), 256u);
  const auto back = UniqueIdOf(token);
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(std::string(back->internal, sizeof(back->internal)), std::string(id.internal, sizeof(id.internal)));
}

TEST(NcclToken, WhatIsNoneIsRefusedWithoutRepeatingIt) {
  for (const std::string& token : {std::string("0123456789abcdef"), std::string(256, 'g'), std::string(258, 'a')}) {
    const absl::Status status = UniqueIdOf(token).status();
    EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, std::to_string(token.size())));
    EXPECT_EQ(std::string(status.message()).find(token), std::string::npos);
  }
}

TEST(DeviceUuid, IsTheSameFromWhoeverPrintedIt) {
  EXPECT_EQ(NormalUuid("GPU-8F1C0000-aaaa"), "GPU-8f1c0000-aaaa");
  EXPECT_EQ(NormalUuid("8f1c0000-aaaa"), "GPU-8f1c0000-aaaa");
}

// The one test here that loads it: what is loaded is for the process.
TEST(NcclLibrary, OneThatIsMissingIsNamedWithTheVariableThatNamesAnother) {
  ASSERT_EQ(setenv(kNcclLibraryVariable, "/nowhere/libnccl.so.2", 1), 0);
  EXPECT_THAT(NcclLibrary::Load().status(), FailsWith(absl::StatusCode::kFailedPrecondition, "/nowhere/libnccl.so.2"));
  EXPECT_THAT(NcclLibrary::Load().status(), FailsWith(absl::StatusCode::kFailedPrecondition, kNcclLibraryVariable));
}

TEST(CudaBackend, WithoutAGpuSaysSoAndWhatToDo) {
  std::string why;
  const int count = GpuCount(&why);
  EXPECT_THAT(
      CudaBackend::Create({.device = count}).status(),
      FailsWith(absl::StatusCode::kFailedPrecondition, count == 0 ? "transfer.backend: host" : "there is no GPU"));
}

}  // namespace
}  // namespace wsync::cuda
