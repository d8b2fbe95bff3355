// Events of a client process as the fakes of both agents' backends know them: the test is the client, and says when its
// stream gets where. Thread-safe.
#ifndef WSYNC_TESTS_BACKEND_FAKE_CLIENT_EVENTS_H_
#define WSYNC_TESTS_BACKEND_FAKE_CLIENT_EVENTS_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/backend/stream_event.h"
#include "server/core/clock.h"
#include "server/core/sync.h"

namespace wsync {

// One event, and what it is as the completion of what the client recorded.
class FakeClientEvent final : public Completion {
 public:
  explicit FakeClientEvent(std::function<void()> changed) : on_change_(std::move(changed)) {}

  // ---- the client
  void Come() { Finish(absl::OkStatus()); }
  absl::Status given_up() const {
    MutexLock lock(&mu_);
    return given_up_;
  }
  size_t marks() const {
    MutexLock lock(&mu_);
    return marks_.size();
  }
  std::vector<CompletionPtr> marked(size_t mark) const {  // what that mark comes after
    MutexLock lock(&mu_);
    return marks_.at(mark);
  }

  // ---- the agent
  void Then(std::function<void(absl::Status)> next) {
    std::optional<absl::Status> result;
    {
      MutexLock lock(&mu_);
      result = result_;
      if (!result.has_value()) next_.push_back(next);
    }
    if (result.has_value()) next(*result);
  }
  absl::Status Wait(absl::Time deadline) override {
    MutexLock lock(&mu_);
    while (!result_.has_value() && MonotonicNow() < deadline) changed_.WaitUntil(&mu_, deadline);
    return result_.value_or(absl::DeadlineExceededError("the client's stream has not come"));
  }
  std::optional<absl::Status> Poll() override {
    MutexLock lock(&mu_);
    return result_;
  }
  void GiveUp(const absl::Status& why) {
    {
      MutexLock lock(&mu_);
      given_up_ = why;
    }
    Finish(why);
  }
  void Mark(absl::Span<const CompletionPtr> after) {
    MutexLock lock(&mu_);
    marks_.emplace_back(after.begin(), after.end());
  }

 private:
  void Finish(const absl::Status& status) {
    std::vector<std::function<void(absl::Status)>> next;
    {
      MutexLock lock(&mu_);
      if (result_.has_value()) return;
      result_ = status;
      next.swap(next_);
      changed_.SignalAll();
    }
    for (auto& f : next) f(status);
    if (on_change_) on_change_();
  }

  const std::function<void()> on_change_;
  mutable Mutex mu_;
  CondVar changed_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void(absl::Status)>> next_ ABSL_GUARDED_BY(mu_);
  absl::Status given_up_ ABSL_GUARDED_BY(mu_);
  std::vector<std::vector<CompletionPtr>> marks_ ABSL_GUARDED_BY(mu_);
};

class FakeClientEvents {
 public:
  static constexpr char kUuid[] = "GPU-fake";

  // `changed` runs whenever an event comes or is given up.
  explicit FakeClientEvents(std::function<void()> changed = nullptr) : changed_(std::move(changed)) {}

  std::shared_ptr<FakeClientEvent> Lend(const std::string& handle) {
    MutexLock lock(&mu_);
    return lent_[handle] = std::make_shared<FakeClientEvent>(changed_);
  }
  int64_t opened() const {
    MutexLock lock(&mu_);
    return opened_;
  }

  static absl::Status Check(const EventHandle& handle) {
    if (handle.device_uuid == kUuid) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("an event of '", handle.device_uuid, "', this is ", kUuid));
  }
  absl::StatusOr<std::unique_ptr<StreamEvent>> Open(const EventHandle& handle) {
    if (absl::Status status = Check(handle); !status.ok()) return status;
    MutexLock lock(&mu_);
    const auto found = lent_.find(handle.handle);
    if (found == lent_.end()) return absl::NotFoundError(absl::StrCat("no event '", handle.handle, "'"));
    ++opened_;
    return std::make_unique<Opened>(found->second);
  }

 private:
  class Opened final : public StreamEvent {
   public:
    explicit Opened(std::shared_ptr<FakeClientEvent> event) : event_(std::move(event)) {}
    CompletionPtr Recorded() override { return event_; }
    void GiveUp(const absl::Status& why) override { event_->GiveUp(why); }
    absl::Status Mark(absl::Span<const CompletionPtr> after) override {
      event_->Mark(after);
      return absl::OkStatus();
    }

   private:
    const std::shared_ptr<FakeClientEvent> event_;
  };

  const std::function<void()> changed_;
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<FakeClientEvent>> lent_ ABSL_GUARDED_BY(mu_);
  int64_t opened_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_BACKEND_FAKE_CLIENT_EVENTS_H_
