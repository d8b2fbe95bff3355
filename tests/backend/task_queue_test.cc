#include "server/backend/host/task_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "server/core/clock.h"

namespace wsync::host {
namespace {

absl::Time HangDeadline() { return MonotonicNow() + absl::Seconds(60); }

// Of no backend at all.
class ForeignCompletion final : public Completion {
 public:
  absl::Status Wait(absl::Time) override { return absl::OkStatus(); }
  std::optional<absl::Status> Poll() override { return absl::OkStatus(); }
};

class TaskQueueTest : public testing::Test {
 protected:
  CompletionPtr AddThatEndsWith(absl::Status result, const CompletionPtr& after = nullptr) {
    return queue_->Add(after, [this, result](TaskQueue::Done done) {
      ++started_;
      done(result);
    });
  }

  WorkerPool pool_{2};
  const std::shared_ptr<TaskQueue> queue_ = std::make_shared<TaskQueue>(&pool_);
  std::atomic<int> started_ = 0;
};

TEST_F(TaskQueueTest, TasksRunOneAtATime) {
  std::atomic<int> running = 0, most = 0;
  std::vector<CompletionPtr> all;
  for (int i = 0; i < 100; ++i) {
    all.push_back(queue_->Add(nullptr, [&](TaskQueue::Done done) {
      most = std::max(most.load(), ++running);
      pool_.Post([&, done] {
        --running;
        done(absl::OkStatus());
      });
    }));
  }
  EXPECT_TRUE(queue_->Drain(HangDeadline()).ok());
  for (const CompletionPtr& completion : all) EXPECT_TRUE(completion->Poll().has_value());
  EXPECT_EQ(most, 1);
}

TEST_F(TaskQueueTest, ATaskThatWaitsDoesNotHoldUpThoseThatAreReady) {
  const auto gate = std::make_shared<HostCompletion>();
  const CompletionPtr waiting = AddThatEndsWith(absl::OkStatus(), gate);
  EXPECT_TRUE(AddThatEndsWith(absl::OkStatus())->Wait(HangDeadline()).ok());
  EXPECT_FALSE(waiting->Poll().has_value());
  gate->Finish(absl::OkStatus());
  EXPECT_TRUE(waiting->Wait(HangDeadline()).ok());
}

TEST_F(TaskQueueTest, DrainTellsTheFirstErrorOnce) {
  AddThatEndsWith(absl::DataLossError("first"))->Wait(HangDeadline()).IgnoreError();
  AddThatEndsWith(absl::DataLossError("second"))->Wait(HangDeadline()).IgnoreError();
  EXPECT_EQ(queue_->Drain(HangDeadline()), absl::DataLossError("first"));
  EXPECT_TRUE(queue_->Drain(HangDeadline()).ok());
}

TEST_F(TaskQueueTest, DrainGivesUpAtItsDeadlineAndForgetsNothing) {
  const auto gate = std::make_shared<HostCompletion>();
  AddThatEndsWith(absl::DataLossError("late"), gate);
  EXPECT_EQ(queue_->Drain(MonotonicNow()).code(), absl::StatusCode::kDeadlineExceeded);
  gate->Finish(absl::OkStatus());
  EXPECT_EQ(queue_->Drain(HangDeadline()), absl::DataLossError("late"));
}

TEST_F(TaskQueueTest, CancelFailsTasksThatWaitForWorkThatNeverEnds) {
  const auto never = std::make_shared<HostCompletion>();
  const CompletionPtr waiting = AddThatEndsWith(absl::OkStatus(), never);
  queue_->Cancel(absl::AbortedError("enough"));
  EXPECT_EQ(waiting->Wait(HangDeadline()), absl::AbortedError("enough"));
  EXPECT_EQ(AddThatEndsWith(absl::OkStatus())->Wait(HangDeadline()), absl::AbortedError("enough"));
  EXPECT_EQ(queue_->Drain(HangDeadline()), absl::AbortedError("enough"));
  EXPECT_EQ(started_, 0);
  never->Finish(absl::OkStatus());  // too late to start it
  EXPECT_TRUE(AddThatEndsWith(absl::OkStatus())->Wait(HangDeadline()).ok());
  EXPECT_EQ(started_, 1);
}

TEST_F(TaskQueueTest, ACompletionOfAnotherBackendIsRefused) {
  const CompletionPtr task = AddThatEndsWith(absl::OkStatus(), std::make_shared<ForeignCompletion>());
  EXPECT_EQ(task->Wait(HangDeadline()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(started_, 0);
}

}  // namespace
}  // namespace wsync::host
