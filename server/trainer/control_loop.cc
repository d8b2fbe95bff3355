#include "server/trainer/control_loop.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "server/core/clock.h"

namespace wsync {

ControlLoop::ControlLoop(CoordinatorOptions options) : coordinator_(std::move(options), MonotonicNow()) {}

ControlLoop::~ControlLoop() { Stop(); }

void ControlLoop::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void ControlLoop::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

bool ControlLoop::Run(Task task) {
  MutexLock lock(&mu_);
  if (stopping_) return false;
  tasks_.push_back(std::move(task));
  changed_.SignalAll();
  return true;
}

bool ControlLoop::Post(Event event) {
  return Run([this, event = std::move(event)] { Step(event); });
}

bool ControlLoop::RunAndWait(Task task) {
  bool done = false;
  const bool queued = Run([this, &task, &done] {
    task();
    MutexLock lock(&mu_);
    done = true;
    changed_.SignalAll();
  });
  if (!queued) return false;
  MutexLock lock(&mu_);
  while (!done) changed_.Wait(&mu_);
  return true;
}

void ControlLoop::Step(const Event& event) {
  ++changes_;
  for (const Action& action : coordinator_.Step(MonotonicNow(), event)) carry_out_(action);
}

StatusSnapshot ControlLoop::Snapshot() const { return coordinator_.Snapshot(MonotonicNow()); }

void ControlLoop::Loop() {
  pthread_setname_np(pthread_self(), "wsync-control");
  absl::Time due = absl::InfinitePast();
  while (true) {
    std::deque<Task> batch;
    {
      MutexLock lock(&mu_);
      while (tasks_.empty() && !stopping_ && MonotonicNow() < due) changed_.WaitUntil(&mu_, due);
      if (tasks_.empty() && stopping_) return;
      batch.swap(tasks_);
    }
    for (const Task& task : batch) {
      const Turns::Scope turn(&turns_);
      task();
    }
    const Turns::Scope turn(&turns_);
    // After the tasks: a heartbeat that waited in the queue counts before silence does.
    if (MonotonicNow() >= coordinator_.NextDeadline()) Step(event::Tick{});
    due = coordinator_.NextDeadline();
    for (const Chore& chore : chores_) due = std::min(due, chore(MonotonicNow()));
    // A chore may have stepped the coordinator.
    due = std::min(due, coordinator_.NextDeadline());
  }
}

}  // namespace wsync
