// One named thread that runs what is posted to it, in order, and a timer between jobs.
//
// Post: any thread, never blocks. Jobs and timer run on the thread itself. Whoever may post late (a gRPC callback)
// holds it by shared_ptr; after Stop nothing runs any more and posts are dropped.
#ifndef WSYNC_SERVER_ROLLOUT_SERIAL_THREAD_H_
#define WSYNC_SERVER_ROLLOUT_SERIAL_THREAD_H_

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/core/sync.h"
#include "server/core/turns.h"

namespace wsync {

class SerialThread {
 public:
  using Job = std::function<void()>;
  struct Timer {
    std::function<absl::Time()> next;  // asked after every job
    Job fire;                          // run once `next` has passed; must move it on
  };

  // `name` is what `top -H` shows: at most 15 characters.
  explicit SerialThread(std::string name);
  ~SerialThread();

  void Post(Job job);
  void SetTimer(Timer timer) { timer_ = std::move(timer); }  // on the thread: from a job
  // Waits for the running job, drops those that wait. Not from the thread itself. Idempotent.
  void Stop();
  // One thread, a few times a second: see Turns. For threads whose jobs are all short.
  absl::Status Look(absl::Time now) { return turns_.Look(now); }

 private:
  void Run();

  Timer timer_;  // the thread only
  Turns turns_;
  Mutex mu_;
  CondVar wake_;
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_SERIAL_THREAD_H_
