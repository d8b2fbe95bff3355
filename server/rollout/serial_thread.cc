#include "server/rollout/serial_thread.h"

#include <pthread.h>

#include <utility>

#include "server/core/clock.h"

namespace wsync {

SerialThread::SerialThread(std::string name) : thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), name.c_str());
}

SerialThread::~SerialThread() { Stop(); }

void SerialThread::Post(Job job) {
  MutexLock lock(&mu_);
  if (stopped_) return;
  jobs_.push_back(std::move(job));
  wake_.SignalAll();
}

void SerialThread::Stop() {
  std::deque<Job> dropped;  // destroyed without the lock: a job may own what posts again when it goes
  {
    MutexLock lock(&mu_);
    stopped_ = true;
    dropped.swap(jobs_);
    wake_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void SerialThread::Run() {
  while (true) {
    Job job;
    const absl::Time due = timer_.next ? timer_.next() : absl::InfiniteFuture();
    {
      MutexLock lock(&mu_);
      while (!stopped_ && jobs_.empty() && MonotonicNow() < due) wake_.WaitUntil(&mu_, due);
      if (stopped_) return;
      // A stream of jobs must not starve the timer: heartbeats are among what it fires.
      if (MonotonicNow() < due) {
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
    }
    const Turns::Scope turn(&turns_);
    job ? job() : timer_.fire();
  }
}

}  // namespace wsync
