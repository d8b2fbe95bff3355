#include "tests/rollout/script.h"

#include <algorithm>
#include <utility>

#include "tests/rollout/source_testing.h"

namespace wsync {

// ---- completions

absl::Status FakeCompletion::Wait(absl::Time deadline) {
  MutexLock lock(&mu_);
  while (!result_) {
    if (!changed_.WaitUntil(&mu_, deadline) && !result_) return absl::DeadlineExceededError("still running");
  }
  return *result_;
}

std::optional<absl::Status> FakeCompletion::Poll() {
  MutexLock lock(&mu_);
  return result_;
}

void FakeCompletion::Finish(const absl::Status& status) {
  std::vector<std::function<void(absl::Status)>> next;
  {
    MutexLock lock(&mu_);
    if (result_) return;
    result_ = status;
    next.swap(next_);
    changed_.SignalAll();
  }
  for (auto& f : next) f(status);
}

void FakeCompletion::Then(std::function<void(absl::Status)> next) {
  std::optional<absl::Status> result;
  {
    MutexLock lock(&mu_);
    result = result_;
    if (!result) next_.push_back(next);
  }
  if (result) next(*result);
}

// ---- the script

void Script::SetVersion(uint64_t version) {
  MutexLock lock(&mu_);
  version_ = version;
  delivered_ = 0;
  if (session_ != nullptr) session_->next_offset = session_->broadcasts = 0;
}

void Script::DeliverUpTo(int64_t buckets) {
  {
    MutexLock lock(&mu_);
    deliver_up_to_ = buckets;
  }
  Deliver();
}

void Script::Corrupt(int64_t bucket) {
  MutexLock lock(&mu_);
  corrupt_ = bucket;
}

void Script::FailConnect(const absl::Status& why) {
  MutexLock lock(&mu_);
  fail_connect_ = why;
}

void Script::HoldConnect(bool hold, bool deaf) {
  MutexLock lock(&mu_);
  hold_connect_ = hold;
  deaf_ = deaf;
  changed_.SignalAll();
}

void Script::HoldApply(bool hold) {
  std::vector<std::function<void()>> held;
  {
    MutexLock lock(&mu_);
    hold_apply_ = hold;
    if (!hold) held.swap(held_applies_);
  }
  for (auto& apply : held) apply();
}

void Script::FailApply(int64_t bucket) {
  MutexLock lock(&mu_);
  fail_apply_ = bucket;
}

void Script::FailAllocation(bool fail) {
  MutexLock lock(&mu_);
  fail_allocation_ = fail;
}

void Script::AddEngineMemory(const std::string& name, int64_t bytes) {
  MutexLock lock(&mu_);
  engine_memory_.emplace(name, static_cast<size_t>(bytes));
}

bool Script::EngineMemoryIs(const std::string& name, const std::vector<std::byte>& expected) const {
  MutexLock lock(&mu_);
  return engine_memory_.at(name) == expected;
}

void Script::RemoveEngineMemory(const std::string& name) {
  MutexLock lock(&mu_);
  engine_memory_.erase(name);
}

void Script::ClearEngineMemory(const std::string& name) {
  MutexLock lock(&mu_);
  std::vector<std::byte>& memory = engine_memory_.at(name);
  std::fill(memory.begin(), memory.end(), std::byte{0});
}

int64_t Script::sessions() const {
  MutexLock lock(&mu_);
  return sessions_;
}

int64_t Script::received() const {
  MutexLock lock(&mu_);
  return delivered_;
}

int64_t Script::applied() const {
  MutexLock lock(&mu_);
  return applied_;
}

int64_t Script::held_applies() const {
  MutexLock lock(&mu_);
  return static_cast<int64_t>(held_applies_.size());
}

int64_t Script::allocated_bytes() const {
  MutexLock lock(&mu_);
  return allocated_;
}

void Script::Deliver() {
  while (true) {
    Pending pending;
    {
      MutexLock lock(&mu_);
      if (session_ == nullptr || session_->waiting.empty()) return;
      const auto first = session_->waiting.begin();
      if (first->first >= deliver_up_to_) return;
      pending = first->second;
      for (int64_t i = 0; i < pending.bytes; ++i) pending.data[i] = SourceByte(version_, pending.image_offset + i);
      if (first->first == corrupt_) {
        pending.data[0] ^= std::byte{1};
        corrupt_ = -1;
      }
      session_->moved_bytes += pending.bytes;
      ++delivered_;
      session_->waiting.erase(first);
    }
    pending.done->Finish(absl::OkStatus());
  }
}

}  // namespace wsync
