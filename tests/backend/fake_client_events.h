// Events of a client process as the fakes of both agents' backends know them: the test is the client, and says when its
// stream gets where. No fake device takes one as `after`. Thread-safe.
#ifndef WSYNC_TESTS_BACKEND_FAKE_CLIENT_EVENTS_H_
#define WSYNC_TESTS_BACKEND_FAKE_CLIENT_EVENTS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/backend/stream_event.h"
#include "server/core/clock.h"
#include "server/core/sync.h"

namespace wsync {

// One event, and what it is as the completion of what the client recorded.
class FakeClientEvent final : public Completion {
 public:
  // ---- the client
  void Come() { Finish(absl::OkStatus()); }
  void Fail(const absl::Status& why) { Finish(why); }
  // True once the agent waits for it: it has looked again and again.
  bool IsAwaited() {
    constexpr int kLooks = 10;
    const absl::Time give_up = MonotonicNow() + absl::Seconds(30);
    MutexLock lock(&mu_);
    while (looks_ < kLooks && MonotonicNow() < give_up) changed_.WaitUntil(&mu_, give_up);
    return looks_ >= kLooks;
  }

  // ---- the agent
  absl::Status Wait(absl::Time deadline) override {
    MutexLock lock(&mu_);
    while (!result_.has_value() && MonotonicNow() < deadline) changed_.WaitUntil(&mu_, deadline);
    return result_.value_or(absl::DeadlineExceededError("the client's stream has not come"));
  }
  std::optional<absl::Status> Poll() override {
    MutexLock lock(&mu_);
    ++looks_;
    changed_.SignalAll();
    return result_;
  }

 private:
  void Finish(const absl::Status& status) {
    MutexLock lock(&mu_);
    if (result_.has_value()) return;
    result_ = status;
    changed_.SignalAll();
  }

  mutable Mutex mu_;
  CondVar changed_;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
  int looks_ ABSL_GUARDED_BY(mu_) = 0;
};

class FakeClientEvents {
 public:
  static constexpr char kUuid[] = "GPU-fake";

  std::shared_ptr<FakeClientEvent> Lend(const std::string& handle) {
    MutexLock lock(&mu_);
    return lent_[handle] = std::make_shared<FakeClientEvent>();
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

   private:
    const std::shared_ptr<FakeClientEvent> event_;
  };

  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<FakeClientEvent>> lent_ ABSL_GUARDED_BY(mu_);
  int64_t opened_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_BACKEND_FAKE_CLIENT_EVENTS_H_
