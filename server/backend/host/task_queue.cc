#include "server/backend/host/task_queue.h"

#include <algorithm>
#include <utility>

namespace wsync::host {

CompletionPtr TaskQueue::Add(const CompletionPtr& after, Start start) {
  auto task = std::make_shared<Task>();
  task->start = std::move(start);
  absl::Status cancelled;
  {
    MutexLock lock(&mu_);
    ++left_;
    cancelled = cancelled_;
    if (cancelled.ok()) waiting_.push_back(task);
  }
  if (!cancelled.ok()) {
    End(task, cancelled);
  } else {
    RunAfter(after, [self = shared_from_this(), task](const absl::Status& result) { self->Ready(task, result); });
  }
  return task->completion;
}

void TaskQueue::Ready(const TaskPtr& task, const absl::Status& after) {
  {
    MutexLock lock(&mu_);
    const auto found = std::find(waiting_.begin(), waiting_.end(), task);
    if (found == waiting_.end()) return;  // cancelled meanwhile
    waiting_.erase(found);
    if (after.ok()) ready_.push_back(task);
  }
  if (!after.ok()) return End(task, after);
  StartNext();
}

void TaskQueue::StartNext() {
  TaskPtr task;
  {
    MutexLock lock(&mu_);
    if (running_ || ready_.empty()) return;
    running_ = true;
    task = std::move(ready_.front());
    ready_.pop_front();
  }
  pool_->Post([self = shared_from_this(), task] {
    task->start([self, task](absl::Status result) {
      // Its end first: what it makes ready comes before what a thread that looks now could make ready.
      self->End(task, result);
      {
        MutexLock lock(&self->mu_);
        self->running_ = false;
      }
      self->StartNext();
    });
  });
}

void TaskQueue::End(const TaskPtr& task, const absl::Status& result) {
  {
    // Before anybody hears of it: who does may add a task that fails at once, and this error came first.
    MutexLock lock(&mu_);
    if (first_error_.ok()) first_error_ = result;
  }
  task->completion->Finish(result);
  MutexLock lock(&mu_);
  --left_;
  changed_.SignalAll();
}

void TaskQueue::Cancel(const absl::Status& why) {
  std::deque<TaskPtr> dropped;
  {
    MutexLock lock(&mu_);
    if (cancelled_.ok()) cancelled_ = why;
    dropped.swap(ready_);
    dropped.insert(dropped.end(), waiting_.begin(), waiting_.end());
    waiting_.clear();
  }
  for (const TaskPtr& task : dropped) End(task, why);
}

absl::Status TaskQueue::Drain(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (left_ > 0) {
    if (!changed_.WaitUntil(&mu_, deadline) && left_ > 0) {
      return absl::DeadlineExceededError("buckets are still in work at the deadline");
    }
  }
  cancelled_ = absl::OkStatus();
  return std::exchange(first_error_, absl::OkStatus());
}

}  // namespace wsync::host
