#include "server/backend/host/worker_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <string>
#include <utility>

namespace wsync::host {
namespace {

int UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return static_cast<int>(std::thread::hardware_concurrency());
  return CPU_COUNT(&set);
}

}  // namespace

WorkerPool::WorkerPool(int threads) {
  const int count = std::max(1, threads > 0 ? threads : UsableCpus());
  threads_.reserve(count);
  for (int i = 0; i < count; ++i) {
    threads_.emplace_back([this] { Work(); });
    pthread_setname_np(threads_.back().native_handle(), ("wsync-work-" + std::to_string(i)).c_str());
  }
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::ParallelFor(int64_t count, std::function<void(int64_t)> item, std::function<void()> done) {
  if (count <= 0) return Post(std::move(done));
  auto job = std::make_shared<Job>();
  job->count = count;
  job->item = std::move(item);
  job->done = std::move(done);
  MutexLock lock(&mu_);
  jobs_.push_back(std::move(job));
  changed_.SignalAll();
}

void WorkerPool::Post(std::function<void()> task) {
  MutexLock lock(&mu_);
  posted_.push_back(std::move(task));
  changed_.SignalAll();
}

void WorkerPool::Work() {
  while (true) {
    std::function<void()> task;
    std::shared_ptr<Job> job;
    int64_t index = 0;
    {
      MutexLock lock(&mu_);
      while (posted_.empty() && jobs_.empty() && !stopping_) changed_.Wait(&mu_);
      if (!posted_.empty()) {
        task = std::move(posted_.front());
        posted_.pop_front();
      } else if (!jobs_.empty()) {
        job = jobs_.front();
        index = job->next++;
        if (job->next == job->count) jobs_.pop_front();
      } else {
        return;
      }
    }
    if (task) {
      task();
    } else {
      RunItem(job, index);
    }
  }
}

void WorkerPool::RunItem(const std::shared_ptr<Job>& job, int64_t index) {
  job->item(index);
  {
    MutexLock lock(&mu_);
    if (++job->finished < job->count) return;
  }
  job->done();
}

}  // namespace wsync::host
