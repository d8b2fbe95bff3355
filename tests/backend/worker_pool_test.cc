#include "server/backend/host/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <vector>

#include "server/backend/host/completion.h"
#include "server/core/clock.h"

namespace wsync::host {
namespace {

absl::Time HangDeadline() { return MonotonicNow() + absl::Seconds(60); }

TEST(WorkerPoolTest, EveryItemRunsOnceAndDoneComesAfterTheLast) {
  for (const int threads : {1, 2, 5}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    std::vector<std::atomic<int>> runs(1000);
    std::atomic<int> total = 0;
    HostCompletion done;
    pool.ParallelFor(
        1000,
        [&](int64_t i) {
          ++runs[i];
          ++total;
        },
        [&] { done.Finish(total == 1000 ? absl::OkStatus() : absl::InternalError("done came too early")); });
    EXPECT_TRUE(done.Wait(HangDeadline()).ok());
    for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
  }
}

TEST(WorkerPoolTest, AJobOfNoItemsIsDone) {
  WorkerPool pool(1);
  HostCompletion done;
  pool.ParallelFor(
      0, [](int64_t) { FAIL(); }, [&] { done.Finish(absl::OkStatus()); });
  EXPECT_TRUE(done.Wait(HangDeadline()).ok());
}

TEST(WorkerPoolTest, APostedTaskOvertakesItemsThatHaveNotBegun) {
  WorkerPool pool(1);
  HostCompletion done;
  int64_t items = 0, items_at_post = -1;
  pool.ParallelFor(
      100,
      [&](int64_t i) {
        if (i == 0) pool.Post([&] { items_at_post = items; });
        ++items;
      },
      [&] { done.Finish(absl::OkStatus()); });
  EXPECT_TRUE(done.Wait(HangDeadline()).ok());
  EXPECT_EQ(items_at_post, 1);
}

TEST(WorkerPoolTest, DestructionFinishesWhatWasGiven) {
  std::atomic<int> items = 0;
  {
    WorkerPool pool(3);
    for (int job = 0; job < 50; ++job)
      pool.ParallelFor(
          20, [&](int64_t) { ++items; }, [] {});
  }
  EXPECT_EQ(items, 1000);
}

}  // namespace
}  // namespace wsync::host
