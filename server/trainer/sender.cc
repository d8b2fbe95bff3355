#include "server/trainer/sender.h"

#include <pthread.h>

#include <utility>

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
    busy_ = true;
    changed_.SignalAll();
  }
  if (superseded != nullptr) {
    superseded->Cancel(absl::CancelledError("a newer session took over"), /*drop=*/false, SourceJob::Report::kNo);
  }
}

void Sender::Drain() {
  std::shared_ptr<SourceJob> job;
  {
    MutexLock lock(&mu_);
    job = std::exchange(job_, nullptr);
    next_.reset();
    changed_.SignalAll();
  }
  if (job != nullptr) {
    job->Cancel(absl::CancelledError("a newer version takes its memory"), /*drop=*/false, SourceJob::Report::kNo);
  }
  MutexLock lock(&mu_);
  while (busy_) changed_.Wait(&mu_);
}

void Sender::Stop() {
  Drain();
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Sender::Run() {
  pthread_setname_np(pthread_self(), "wsync-send");
  while (true) {
    std::optional<SendTask> task;
    {
      MutexLock lock(&mu_);
      while (!next_.has_value() && !(busy_ && job_ == nullptr) && !stopping_) changed_.Wait(&mu_);
      if (!next_.has_value() && !busy_) return;
      task = std::exchange(next_, std::nullopt);
    }
    session_ = nullptr;
    if (task.has_value()) {
      const absl::Status status = Serve(*task);
      if (!status.ok()) session_ = nullptr;  // the peers see its end, and the memory is free again
      done_(*task, status);
      continue;
    }
    MutexLock lock(&mu_);
    if (next_.has_value()) continue;
    busy_ = false;
    changed_.SignalAll();
  }
}

absl::Status Sender::Serve(const SendTask& task) {
  auto session = Session::Create(*backend_, task.job, progress_);
  if (!session.ok()) return session.status();
  session_ = *std::move(session);
  if (absl::Status status = session_->Connect(task.limits.connect); !status.ok()) return status;
  std::vector<CompletionPtr> sends;
  sends.reserve(task.parts.size());
  for (const SendTask::Part& part : task.parts) {
    sends.push_back(session_->Broadcast(part.data, part.bytes, part.after));
  }
  return session_->WaitSent(sends, task.limits.transfer);
}

}  // namespace wsync
