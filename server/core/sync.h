// Mutex and condition variable with clang's thread-safety annotations.
//
// Over the standard library's rather than abseil's: Debian's abseil is built without ThreadSanitizer, so every
// absl::Mutex would look like a race to the tsan preset. No lock is held across an RPC, a device call or a callback.
#ifndef WSYNC_SERVER_CORE_SYNC_H_
#define WSYNC_SERVER_CORE_SYNC_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace wsync {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mu_.unlock(); }
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  friend class CondVar;
  std::mutex mu_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* mu_;
};

// Waits may wake spuriously: always wait in a loop on the condition.
class CondVar {
 public:
  void Wait(Mutex* mu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // `deadline` is on MonotonicNow()'s clock. Returns false once it has passed.
  bool WaitUntil(Mutex* mu, absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::unique_lock<std::mutex> lock(mu->mu_, std::adopt_lock);
    const bool in_time = WaitLocked(lock, deadline);
    lock.release();
    return in_time;
  }
  void SignalAll() { cv_.notify_all(); }

 private:
  bool WaitLocked(std::unique_lock<std::mutex>& lock, absl::Time deadline) {
    if (deadline == absl::InfiniteFuture()) {
      cv_.wait(lock);
      return true;
    }
    const auto since_epoch = absl::ToChronoNanoseconds(deadline - absl::UnixEpoch());
    const std::chrono::steady_clock::time_point until{
        std::chrono::duration_cast<std::chrono::steady_clock::duration>(since_epoch)};
    return cv_.wait_until(lock, until) == std::cv_status::no_timeout;
  }
  std::condition_variable cv_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_SYNC_H_
