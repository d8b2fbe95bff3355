#include "client/checkpoint/piece_loop.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/sync.h"

namespace wsync {
namespace {

constexpr absl::Duration kTickInterval = absl::Milliseconds(100);  // smooth for the eye, free for the CPU

class PieceLoop {
 public:
  PieceLoop(int threads, int64_t count, const PieceWork& work) : work_(work), first_failed_(count), running_(threads) {}

  void Work(int worker) {
    pthread_setname_np(pthread_self(), "wsync-pieces");
    for (;;) {
      const int64_t piece = next_.fetch_add(1);
      // Pieces are taken in order, so all before the first failed one have been taken and will be finished.
      if (piece >= first_failed_.load()) break;
      if (absl::Status status = work_(piece, worker); !status.ok()) Fail(piece, std::move(status));
    }
    MutexLock lock(&mu_);
    --running_;
    changed_.SignalAll();
  }

  void WaitWith(const std::function<void()>& tick) {
    for (;;) {
      const absl::Time next_tick = MonotonicNow() + kTickInterval;
      {
        MutexLock lock(&mu_);
        while (running_ > 0 && changed_.WaitUntil(&mu_, next_tick)) {
        }
        if (running_ == 0) return;
      }
      if (tick) tick();
    }
  }

  absl::Status Result() {
    MutexLock lock(&mu_);
    return status_;
  }

 private:
  void Fail(int64_t piece, absl::Status status) {
    MutexLock lock(&mu_);
    if (piece >= first_failed_.load()) return;
    first_failed_.store(piece);
    status_ = std::move(status);
  }

  const PieceWork& work_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> first_failed_;  // the number of pieces while none has
  Mutex mu_;
  CondVar changed_;
  int running_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::Status RunPieces(int threads, int64_t count, const PieceWork& work, const std::function<void()>& tick) {
  threads = static_cast<int>(std::clamp<int64_t>(count, 1, std::max(threads, 1)));
  PieceLoop loop(threads, count, work);
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) workers.emplace_back([&loop, i] { loop.Work(i); });
  loop.WaitWith(tick);
  for (std::thread& worker : workers) worker.join();
  return loop.Result();
}

}  // namespace wsync
