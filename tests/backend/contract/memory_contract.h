// What every backend's Memory must do. Handles of other kinds and of other processes are the backend's own tests.
#ifndef WSYNC_TESTS_BACKEND_CONTRACT_MEMORY_CONTRACT_H_
#define WSYNC_TESTS_BACKEND_CONTRACT_MEMORY_CONTRACT_H_

#include <cstdint>
#include <limits>
#include <memory>

#include "tests/backend/contract/agent.h"

namespace wsync::contract {

class MemoryContract : public AgentContract {
 protected:
  Memory& memory() { return agent_->backend().memory(); }
};

TEST_P(MemoryContract, AllocatedMemoryIsZeroedAlignedAndAsLargeAsAskedFor) {
  for (const int64_t bytes : {int64_t{1}, int64_t{4097}, int64_t{9} << 20}) {
    const auto buffer = memory().Allocate(bytes, "a test");
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ((*buffer)->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>((*buffer)->data()) % 128, 0u);
    EXPECT_EQ(agent_->FromDevice((*buffer)->data(), bytes), Bytes(bytes));
  }
}

TEST_P(MemoryContract, ARequestBeyondAllMemorySaysHowMuchForWhatAndHowMuchThereIs) {
  const int64_t bytes = int64_t{1} << 50;
  EXPECT_THAT(memory().Allocate(bytes, "the moon").status(),
              FailsWith(absl::StatusCode::kResourceExhausted, "for the moon"));
  MemoryHandle handle;
  EXPECT_THAT(memory().AllocateShared(bytes, "the moon", &handle).status(),
              FailsWith(absl::StatusCode::kResourceExhausted, std::to_string(bytes)));
  EXPECT_THAT(memory().Allocate(bytes, "the moon").status(),
              FailsWith(absl::StatusCode::kResourceExhausted, "available"));
}

TEST_P(MemoryContract, NoMemoryOfNoBytes) {
  MemoryHandle handle;
  for (const int64_t bytes : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min()}) {
    EXPECT_EQ(memory().Allocate(bytes, "a test").status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(memory().AllocateShared(bytes, "a test", &handle).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(MemoryContract, SharedMemoryStartsZeroed) {
  MemoryHandle handle;
  const auto buffer = memory().AllocateShared(100'000, "a test", &handle);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(agent_->FromDevice((*buffer)->data(), 100'000), Bytes(100'000));
}

TEST_P(MemoryContract, EventsThatAreNoneAreRefusedWithWhatToDoBeforeAndWhenTheyAreOpened) {
  for (const EventHandle& bad : {EventHandle{}, EventHandle{std::string(63, 'x'), agent_->backend().device_id()},
                                 EventHandle{std::string(64, 'x'), "GPU-00000000-1111-2222-3333-444444444444"}}) {
    const absl::Status status = memory().CheckEvent(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(memory().OpenEvent(bad).status(), status);
  }
  EXPECT_FALSE(memory().OpenEvent({std::string(64, 'x'), agent_->backend().device_id()}).ok());
  EXPECT_TRUE(agent_->backend().health().ok());
  EXPECT_TRUE(memory().Allocate(1, "a test").ok());
}

}  // namespace wsync::contract

#endif  // WSYNC_TESTS_BACKEND_CONTRACT_MEMORY_CONTRACT_H_
