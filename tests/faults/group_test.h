// What tests of a whole job share: one that is in sync, versions that reach everybody, one that is held on its way.
#ifndef WSYNC_TESTS_FAULTS_GROUP_TEST_H_
#define WSYNC_TESTS_FAULTS_GROUP_TEST_H_

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "tests/faults/environment.h"
#include "tests/faults/group.h"

namespace wsync::faults {

// The longest that any single fault may delay a training process. No slack on top: the deadlines leave room.
inline constexpr absl::Duration kHardLimit = absl::Seconds(10);
// What two busy cores take to tell a test about something that is due.
inline constexpr absl::Duration kSlack = absl::Milliseconds(500);
// What anybody who is killed or stopped may cost a training process, its own agent as well.
inline const absl::Duration kKilled = absl::Seconds(1) + kSlack;
inline const absl::Duration kStopped = absl::Seconds(5) + kSlack;

class GroupTest : public ::testing::Test {
 protected:
  // Everybody serves version 1 afterwards. Call with ASSERT_NO_FATAL_FAILURE, as all of these.
  void StartGroup(GroupOptions options = {.rollouts = 2}) {
    auto group = Group::Start(std::move(options));
    ASSERT_TRUE(group.ok()) << group.status();
    group_ = *std::move(group);
    Commit();
  }
  // The next version reaches everybody.
  void Commit() {
    const auto published = group_->Publish(++version_, Scaled(absl::Seconds(20)));
    ASSERT_TRUE(published.has_value()) << "version " << version_ << " was not answered";
    EXPECT_TRUE(published->ok()) << published->message;
    AwaitServed();
    AwaitReady();
  }
  void AwaitServed() {
    for (int i = 0; i < group_->rollouts(); ++i) {
      const absl::Status status = group_->AwaitVersion(i, version_, Scaled(absl::Seconds(20)));
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  void AwaitReady() {
    const absl::Status ready = group_->AwaitReady(Scaled(absl::Seconds(20)));
    ASSERT_TRUE(ready.ok()) << ready;
  }
  // As a supervisor does; what it exited with.
  static int AwaitExit(pid_t pid) {
    const absl::Time deadline = MonotonicNow() + Scaled(absl::Seconds(15));
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
      if (MonotonicNow() > deadline) return -1;
      usleep(5000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  // Stands still when this returns: a process's other threads go on for a moment after the signal.
  static void Stop(pid_t pid) {
    kill(pid, SIGSTOP);
    const absl::Time deadline = MonotonicNow() + Scaled(absl::Seconds(5));
    while (!HasStopped(pid)) {
      ASSERT_LT(MonotonicNow(), deadline) << pid << " did not stop";
      usleep(1000);
    }
  }
  // The next version is on its way to the last rollout, which has half of it and stands there for `held`.
  void HoldInTransfer(absl::Duration held) {
    const int victim = group_->rollouts() - 1;
    HoldAt(absl::StrCat("rollout-", victim), group_->agents().rollout_pid(victim), "rollout.bucket.middle", held);
  }
  // As above, and it is the source that has sent half of it.
  void HoldSource(absl::Duration held) {
    HoldAt("trainer", group_->agents().trainer_pid(), "trainer.broadcast.middle", held);
  }
  void HoldAt(const std::string& agent, pid_t pid, const std::string& failpoint, absl::Duration held) {
    const absl::Status armed =
        ArmFailpoint(pid, failpoint, Fault::kDelay, static_cast<int>(absl::ToInt64Milliseconds(held)));
    ASSERT_TRUE(armed.ok()) << armed;
    const int before = group_->TimesFired(agent, failpoint);
    group_->BeginPublish(++version_);
    const absl::Time deadline = MonotonicNow() + Scaled(absl::Seconds(10));
    while (group_->TimesFired(agent, failpoint) == before) {
      ASSERT_LT(MonotonicNow(), deadline) << "the version never came that far";
      usleep(1000);
    }
  }

  std::unique_ptr<Group> group_;
  uint64_t version_ = 0;
};

}  // namespace wsync::faults

#endif  // WSYNC_TESTS_FAULTS_GROUP_TEST_H_
