// The bucket-sized tasks of one quantizer or loader: each waits for its `after`, then they run one at a time.
//
// One at a time, in the order they become ready: a task uses the whole pool, and state shared by the tasks of one queue
// needs no lock. Thread-safe.
#ifndef WSYNC_SERVER_BACKEND_HOST_TASK_QUEUE_H_
#define WSYNC_SERVER_BACKEND_HOST_TASK_QUEUE_H_

#include <deque>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/host/completion.h"
#include "server/backend/host/worker_pool.h"
#include "server/core/sync.h"

namespace wsync::host {

class TaskQueue : public std::enable_shared_from_this<TaskQueue> {
 public:
  using Done = std::function<void(absl::Status)>;
  // Begins the task on a pool thread; must have `done` called once, from any thread.
  using Start = std::function<void(Done done)>;

  explicit TaskQueue(WorkerPool* pool) : pool_(pool) {}

  CompletionPtr Add(const CompletionPtr& after, Start start);
  // Tasks that have not begun fail with `why`, those to come too until the next Drain that succeeds in waiting.
  void Cancel(const absl::Status& why);
  // Waits until no task is left. The first error of any task since the last Drain; DEADLINE_EXCEEDED changes nothing.
  absl::Status Drain(absl::Time deadline);

 private:
  struct Task {
    Start start;
    std::shared_ptr<HostCompletion> completion = std::make_shared<HostCompletion>();
  };
  using TaskPtr = std::shared_ptr<Task>;

  void Ready(const TaskPtr& task, const absl::Status& after);
  void StartNext();
  void End(const TaskPtr& task, const absl::Status& result);

  WorkerPool* const pool_;
  Mutex mu_;
  CondVar changed_;
  std::deque<TaskPtr> waiting_ ABSL_GUARDED_BY(mu_);  // for their `after`
  std::deque<TaskPtr> ready_ ABSL_GUARDED_BY(mu_);
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  int64_t left_ ABSL_GUARDED_BY(mu_) = 0;  // tasks whose completion is not finished
  absl::Status cancelled_ ABSL_GUARDED_BY(mu_);
  absl::Status first_error_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_TASK_QUEUE_H_
