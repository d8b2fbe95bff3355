#include "server/trainer/sender.h"

#include <pthread.h>

#include <utility>
#include <vector>

#include "server/core/failpoint.h"

namespace wsync {

Sender::Sender(Backend* backend, SessionProgress* progress, Done done)
    : backend_(backend), progress_(progress), done_(std::move(done)), thread_([this] { Run(); }) {}

Sender::~Sender() { Stop(); }

void Sender::Send(SendTask task) {
  std::shared_ptr<SourceJob> superseded;
  {
    MutexLock lock(&mu_);
    superseded = std::exchange(job_, task.job);
    next_ = std::move(task);
    running_ = true;
    changed_.SignalAll();
  }
  if (superseded != nullptr) {
    superseded->Cancel(absl::CancelledError("a newer session took over"), /*drop=*/false, SourceJob::Report::kNo);
  }
}

void Sender::Quiesce() {
  std::shared_ptr<SourceJob> job;
  {
    MutexLock lock(&mu_);
    job = std::exchange(job_, nullptr);
  }
  if (job != nullptr) {
    job->Cancel(absl::CancelledError("a newer version takes its memory"), /*drop=*/false, SourceJob::Report::kNo);
  }
  MutexLock lock(&mu_);
  while (running_) changed_.Wait(&mu_);
}

void Sender::Close() {
  Quiesce();
  MutexLock lock(&mu_);
  closing_ = true;
  changed_.SignalAll();
  while (closing_ && !stopping_) changed_.Wait(&mu_);
}

void Sender::Stop() {
  Quiesce();
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status Sender::Look(absl::Time now) {
  MutexLock lock(&mu_);
  return at_work_.Look(now);
}

void Sender::Run() {
  pthread_setname_np(pthread_self(), "wsync-send");
  while (true) {
    std::optional<SendTask> task;
    {
      MutexLock lock(&mu_);
      while (!next_.has_value() && !closing_ && !stopping_) changed_.Wait(&mu_);
      task = std::exchange(next_, std::nullopt);
      if (task.has_value()) at_work_.Begin(task->job, task->image.plan.get());
    }
    if (!task.has_value()) {
      session_ = nullptr;
      MutexLock lock(&mu_);
      closing_ = false;
      changed_.SignalAll();
      if (stopping_) return;
      continue;
    }
    const absl::Status status = Serve(*task);
    if (!status.ok()) session_ = nullptr;  // the peers see its end, and the memory is free again
    done_(*task, status);
    MutexLock lock(&mu_);
    at_work_.End();
    if (next_.has_value()) continue;
    if (job_ == task->job) job_ = nullptr;
    running_ = false;
    changed_.SignalAll();
  }
}

absl::Status Sender::Serve(const SendTask& task) {
  absl::Status opened = Session::Open(*backend_, task.job, progress_, task.limits.connect, &session_);
  if (!opened.ok()) return opened;
  std::vector<CompletionPtr> sends;
  const std::vector<Bucket>& buckets = task.image.plan->buckets();
  sends.reserve(buckets.size());
  for (size_t k = 0; k < buckets.size(); ++k) {
    std::byte* const wire = task.image.data + buckets[k].image_offset;
    const int64_t bytes = buckets[k].wire_bytes;
    const std::optional<CompletionPtr> started = task.encodes->Await(k, task.job->send_token());
    if (!started.has_value()) {
      const absl::Status why = task.job->cancelled();
      return why.ok() ? absl::CancelledError("the version was abandoned") : why;
    }
    CompletionPtr encoded = *started;
    WSYNC_CORRUPTION_POINT("trainer.wire", wire, encoded == nullptr || encoded->Poll() ? bytes : 0);
    (void)WSYNC_BUCKET_FAILPOINT("trainer.broadcast", static_cast<int64_t>(k), static_cast<int64_t>(buckets.size()));
    sends.push_back(session_->Broadcast(wire, bytes, std::move(encoded)));
  }
  return session_->WaitSent(sends, task.limits.transfer);
}

}  // namespace wsync
