// A receiver over a backend that the test controls, and an engine's memory.
#ifndef WSYNC_TESTS_ROLLOUT_RECEIVER_TESTING_H_
#define WSYNC_TESTS_ROLLOUT_RECEIVER_TESTING_H_

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "server/core/clock.h"
#include "server/rollout/receiver.h"
#include "tests/rollout/fake_backend.h"
#include "tests/rollout/source_testing.h"
#include "tests/rollout/testing.h"

namespace wsync {

// The answer of a job, waited for with a deadline.
template <typename T>
class Answer {
 public:
  std::function<void(T)> Callback() {
    return [promise = promise_](T value) { promise->set_value(std::move(value)); };
  }
  T Get() {
    auto future = promise_->get_future();
    EXPECT_EQ(future.wait_for(absl::ToChronoSeconds(kPatience)), std::future_status::ready) << "no answer";
    return future.get();
  }

 private:
  std::shared_ptr<std::promise<T>> promise_ = std::make_shared<std::promise<T>>();
};

class ReceiverTest : public ::testing::Test {
 protected:
  void Use(ReceiverOptions options) {
    receiver_.reset();
    receiver_.emplace(backend_.get(), options);
  }
  PlanResult SetCatalog(const std::shared_ptr<const Plan>& plan) {
    Answer<PlanResult> answer;
    receiver_->SetCatalog(Announce(plan), answer.Callback());
    return answer.Get();
  }
  static AnnouncedCatalog Announce(const std::shared_ptr<const Plan>& plan) {
    return {plan->catalog().tensors(), plan->rules(), plan->bucket_bytes(), plan->catalog().fingerprint(),
            plan->hash()};
  }
  AttachSpec Spec(const Plan& plan) {
    AttachSpec spec{.engine = "test", .pid = 1};
    int64_t bytes = 0;
    spec.destinations = WholeDestinations(plan, &bytes);
    script_.AddEngineMemory("/engine", bytes);
    spec.handles = {SharedMemoryHandle{"/engine", bytes}};
    return spec;
  }
  absl::StatusOr<AttachInfo> Attach(AttachSpec spec) {
    Answer<absl::StatusOr<AttachInfo>> answer;
    receiver_->Attach(std::move(spec), answer.Callback());
    return answer.Get();
  }
  void MakeReady(SinkMode mode) {
    Use({.mode = mode, .ring_slots = 2});
    ASSERT_TRUE(SetCatalog(plan_).status.ok());
    ASSERT_TRUE(Attach(Spec(*plan_)).ok());
  }
  sink::Connected Connect(const std::string& token = "token") {
    Answer<sink::Connected> answer;
    receiver_->Connect({token, 1, 2, "nowhere"}, answer.Callback());
    return answer.Get();
  }
  sink::Received Receive(uint64_t version) {
    script_.SetVersion(version);
    EXPECT_TRUE(Connect().status.ok());
    Answer<sink::Received> answer;
    receiver_->Receive(answer.Callback());
    receiver_->EnginePaused();
    return answer.Get();
  }
  sink::ApplyDone Apply() {
    Answer<sink::ApplyDone> answer;
    receiver_->Apply(answer.Callback());
    return answer.Get();
  }
  void AwaitSessions(int64_t sessions) {
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (script_.sessions() < sessions && MonotonicNow() < deadline) std::this_thread::yield();
    ASSERT_EQ(script_.sessions(), sessions);
  }
  void AwaitReceived(int64_t buckets) {
    const absl::Time deadline = MonotonicNow() + kPatience;
    while (script_.received() < buckets && MonotonicNow() < deadline) std::this_thread::yield();
    ASSERT_EQ(script_.received(), buckets);
  }
  bool EngineHolds(uint64_t version) { return script_.EngineMemoryIs("/engine", ExpectedMemory(*plan_, version)); }
  Hash128 ContentOf(uint64_t version) { return plan_->ContentDigest(SourceDigests(*plan_, version)); }

  Script script_;
  std::unique_ptr<Backend> backend_ = NewFakeBackend(&script_);
  std::shared_ptr<const Plan> plan_ = PlanOf(SmallCatalog(6));
  std::optional<Receiver> receiver_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_RECEIVER_TESTING_H_
