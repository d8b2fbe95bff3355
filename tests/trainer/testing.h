// What the trainer's tests share: waiting with a deadline, a record of events, and small registrations.
#ifndef WSYNC_TESTS_TRAINER_TESTING_H_
#define WSYNC_TESTS_TRAINER_TESTING_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/events.h"
#include "server/core/sync.h"
#include "server/trainer/registration.h"
#include "tests/trainer/fake_backend.h"

namespace wsync {

inline constexpr absl::Duration kPatience =
    absl::Seconds(30);  // a test that waits this long has failed, also under tsan on a busy box

// Waits for a condition that no lock of ours guards.
inline bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = MonotonicNow() + kPatience;
  while (!condition()) {
    if (MonotonicNow() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// Everything a publisher reports, in order.
class EventRecord {
 public:
  void Add(Event event) {
    MutexLock lock(&mu_);
    events_.push_back(std::move(event));
    changed_.SignalAll();
  }
  // The n-th event of this type, once it is there; fails the test when it does not come.
  template <typename T>
  T Await(size_t n = 0) {
    const absl::Time deadline = MonotonicNow() + kPatience;
    MutexLock lock(&mu_);
    while (true) {
      size_t seen = 0;
      for (const Event& event : events_) {
        if (const T* found = std::get_if<T>(&event); found != nullptr && seen++ == n) return *found;
      }
      if (!changed_.WaitUntil(&mu_, deadline)) {
        ADD_FAILURE() << "an event did not come; " << events_.size() << " others did";
        return T{};
      }
    }
  }
  template <typename T>
  size_t Count() {
    MutexLock lock(&mu_);
    size_t seen = 0;
    for (const Event& event : events_) seen += std::holds_alternative<T>(event);
    return seen;
  }
  size_t size() {
    MutexLock lock(&mu_);
    return events_.size();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<Event> events_ ABSL_GUARDED_BY(mu_);
};

inline constexpr int64_t kTestTensorBytes = 128 * 128 * 4;  // one 128-row unit that fills a bucket of its own

inline RecipeRules RawRules() {
  RecipeRules rules;
  rules.fp8 = false;
  return rules;
}

// `tensors` F32 matrices of 128 x 128 in lent memory `name`: as many buckets.
inline RegistrationRequest TestRequest(FakeBackend& backend, int tensors, const std::string& name = "/weights") {
  RegistrationRequest request;
  request.pid = getpid();
  backend.Lend(name, tensors * kTestTensorBytes);
  request.handles.push_back(SharedMemoryHandle{name, tensors * kTestTensorBytes});
  for (int i = 0; i < tensors; ++i) {
    request.tensors.push_back({absl::StrCat("layers.", i, ".weight"), Dtype::kF32, {128, 128}});
    request.places.push_back({0, static_cast<uint64_t>(i * kTestTensorBytes)});
  }
  return request;
}

inline std::shared_ptr<const Registration> TestRegistration(FakeBackend& backend, int tensors,
                                                            const std::string& name = "/weights") {
  auto registration =
      Registration::Create(TestRequest(backend, tensors, name), RawRules(), kMinBucketBytes, backend.memory());
  EXPECT_TRUE(registration.ok()) << registration.status();
  return *registration;
}

}  // namespace wsync

#endif  // WSYNC_TESTS_TRAINER_TESTING_H_
