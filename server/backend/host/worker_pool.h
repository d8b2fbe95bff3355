// The host backend's threads: named, few, shared by every quantizer, loader and transport of one backend.
//
// Work comes as jobs of many small items. Items of several threads are taken in the order jobs came, so a job that came
// first never waits for a later one. Thread-safe. Nothing given to the pool may block or throw.
#ifndef WSYNC_SERVER_BACKEND_HOST_WORKER_POOL_H_
#define WSYNC_SERVER_BACKEND_HOST_WORKER_POOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "server/core/sync.h"

namespace wsync::host {

class WorkerPool {
 public:
  explicit WorkerPool(int threads);  // 0: one per CPU that this process may use
  // Finishes what was given to it. Not from one of its own threads.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Calls item(i) for every i in [0, count), on any threads in any order, and when all have returned done(), once.
  void ParallelFor(int64_t count, std::function<void(int64_t)> item, std::function<void()> done);
  // Calls task() soon: before any item that has not begun.
  void Post(std::function<void()> task);

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  struct Job {
    int64_t count = 0;
    int64_t next = 0;      // first item nobody took yet
    int64_t finished = 0;  // items that returned
    std::function<void(int64_t)> item;
    std::function<void()> done;
  };

  void Work();
  void RunItem(const std::shared_ptr<Job>& job, int64_t index);

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> posted_ ABSL_GUARDED_BY(mu_);
  std::deque<std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mu_);  // those with items left to take
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;  // last: they use everything above
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_WORKER_POOL_H_
