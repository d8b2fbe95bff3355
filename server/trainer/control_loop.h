// The one thread that thinks: feeds events to the core Coordinator and has its actions carried out, in order.
//
// Owns the Coordinator, so there is no lock around it: whoever wants something of it runs a task on this thread. gRPC
// callbacks, publisher and registrar only enqueue. Nothing that runs here may block.
#ifndef WSYNC_SERVER_TRAINER_CONTROL_LOOP_H_
#define WSYNC_SERVER_TRAINER_CONTROL_LOOP_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "server/core/coordinator.h"
#include "server/core/sync.h"
#include "server/core/turns.h"

namespace wsync {

class ControlLoop {
 public:
  using Task = std::function<void()>;
  // Looks after something now and then; returns when it wants to be called at the latest. Called after every batch of
  // tasks, too.
  using Chore = std::function<absl::Time(absl::Time now)>;

  explicit ControlLoop(CoordinatorOptions options);
  ~ControlLoop();  // Stop

  // Before Start.
  void OnAction(std::function<void(const Action&)> carry_out) { carry_out_ = std::move(carry_out); }
  void AddChore(Chore chore) { chores_.push_back(std::move(chore)); }
  void Start();
  // Runs what is queued, then ends the thread.
  void Stop();

  // Any thread. False: the loop has stopped, and the task will never run.
  bool Run(Task task);
  bool Post(Event event);
  // As Run, and waits until it has run. Not from the loop's own thread.
  bool RunAndWait(Task task);

  // One thread, a few times a second: see Turns.
  absl::Status Look(absl::Time now) { return turns_.Look(now); }

  // The loop's own thread only.
  void Step(const Event& event);
  StatusSnapshot Snapshot() const;
  uint64_t changes() const { return changes_; }  // grows with everything that a status may show

 private:
  void Loop();

  std::function<void(const Action&)> carry_out_;
  std::vector<Chore> chores_;
  Coordinator coordinator_;  // the thread's own, once it runs
  uint64_t changes_ = 0;     // likewise
  Turns turns_;
  Mutex mu_;
  CondVar changed_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_CONTROL_LOOP_H_
