#include "server/backend/host/completion.h"

#include <utility>

namespace wsync::host {

std::shared_ptr<HostCompletion> HostCompletion::Finished(absl::Status result) {
  auto completion = std::make_shared<HostCompletion>();
  completion->Finish(std::move(result));
  return completion;
}

absl::Status HostCompletion::Wait(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (!result_) {
    if (!done_.WaitUntil(&mu_, deadline) && !result_) {
      return absl::DeadlineExceededError("the work was not finished within the deadline");
    }
  }
  return *result_;
}

std::optional<absl::Status> HostCompletion::Poll() {
  MutexLock lock(&mu_);
  return result_;
}

void HostCompletion::Finish(absl::Status result) {
  std::vector<Callback> callbacks;
  {
    MutexLock lock(&mu_);
    if (result_) return;
    result_ = result;
    callbacks.swap(callbacks_);
    done_.SignalAll();
  }
  for (const Callback& callback : callbacks) callback(result);
}

void HostCompletion::OnDone(Callback callback) {
  absl::Status result;
  {
    MutexLock lock(&mu_);
    if (!result_) {
      callbacks_.push_back(std::move(callback));
      return;
    }
    result = *result_;
  }
  callback(result);
}

void RunAfter(const CompletionPtr& after, HostCompletion::Callback callback) {
  if (after == nullptr) return callback(absl::OkStatus());
  if (auto* host = dynamic_cast<HostCompletion*>(after.get())) return host->OnDone(std::move(callback));
  callback(absl::InvalidArgumentError("host backend: cannot order work after a completion of another backend"));
}

}  // namespace wsync::host
