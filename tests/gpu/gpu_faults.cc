#include "tests/gpu/gpu_faults.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/core/clock.h"
#include "tests/faults/child_process.h"
#include "tests/faults/environment.h"
#include "tests/faults/failpoint_control.h"

namespace wsync::gpu {
namespace {

using faults::Scaled;

// What anybody's end may cost the training process.
constexpr absl::Duration kKilledLimit = absl::Seconds(1);
constexpr absl::Duration kStoppedLimit = absl::Seconds(5);
constexpr absl::Duration kHardLimit = absl::Seconds(10);
constexpr absl::Duration kFireLimit = absl::Seconds(20);
// An engine hears what became of a version this long after the trainer at most.
constexpr absl::Duration kMessageSlack = absl::Milliseconds(100);
// A trainer's agent is struck from outside, once its sink is at it, too: its own thread, or that of the sink which
// copies, is held for so long at the step.
constexpr int kHeldMs = 1000;
constexpr int kHeldCopyMs = 300;
constexpr absl::Duration kIntoNccl = absl::Milliseconds(50);  // until a sink that has heard of a version waits in NCCL

// One channel of NCCL buffers 4 MiB on its way: buckets of 6 MiB do not fit.
constexpr int64_t kBucketBytes = int64_t{6} << 20;

struct Point {
  Side side;  // in whose process
  std::string name;
};

Point PointOf(Side side, Step step) {
  const std::string agent = side == Side::kTrainer ? "trainer." : "rollout.";
  switch (step) {
    case Step::kInit:
      return {side, agent + "connect"};
    case Step::kFirstBucket:
      return {side, agent + "broadcast.first"};
    case Step::kMiddleBucket:
      return {side, agent + "broadcast.middle"};
    case Step::kLastBucket:
      return {side, agent + "broadcast.last"};
    case Step::kApply:
      return {Side::kRollout, "rollout.apply"};
  }
  return {};
}

double InSeconds(absl::Duration duration) { return absl::ToDoubleSeconds(duration); }

}  // namespace

const char* NameOf(Side side) { return side == Side::kTrainer ? "Trainer" : "Rollout"; }

const char* NameOf(Step step) {
  constexpr const char* kNames[] = {"", "init", "first", "middle", "last", "apply"};
  return kNames[static_cast<int>(step)];
}

const char* NameOf(Fault fault) { return fault == Fault::kKill ? "Killed" : "Stopped"; }

GpuFaults::GpuFaults(int layers)
    : GpuCluster({.layers = layers, .bucket_bytes = kBucketBytes, .binary_suffix = "-faults"}) {}

void GpuFaults::SetUp() {
  GpuCluster::SetUp();
  faults::PrepareFailpoints();
}

void GpuFaults::TearDown() {
  for (const Side side : {Side::kTrainer, Side::kRollout}) {
    if (cluster_ != nullptr && PidOf(side) > 0) kill(PidOf(side), SIGCONT);
  }
  GpuCluster::TearDown();
  faults::RemoveFailpointPipes();
}

void GpuFaults::StartInSync() {
  const cli::ConfigFlags one_channel = {{"transfer.nccl_max_ctas", "1"}};
  ASSERT_NO_FATAL_FAILURE(Start(one_channel, one_channel));
  ASSERT_NO_FATAL_FAILURE(Register());
  WaitUntilSettled();
}

pid_t GpuFaults::PidOf(Side side) const {
  return side == Side::kTrainer ? cluster_->trainer_pid() : cluster_->rollout_pid(0);
}

std::string GpuFaults::LogPathOf(Side side) const {
  return cluster_->log_path(side == Side::kTrainer ? "trainer" : "rollout-0");
}

void GpuFaults::WaitUntilSettled() {
  const absl::Time deadline = MonotonicNow() + kPatience;
  std::string last;
  while (MonotonicNow() < deadline) {
    const auto status = cluster_->Status();
    last = status.ok() ? status->reason() : std::string(status.status().message());
    const bool ready =
        status.ok() && status->catalog().registered() && !status->has_round() &&
        std::any_of(status->members().begin(), status->members().end(), [](const v1::MemberStatus& member) {
          return member.role() == "rollout" && member.state() == "ready" && !member.engine().empty();
        });
    if (ready) return;
    usleep(5000);
  }
  FAIL() << "the group is not ready again: " << last;
}

void GpuFaults::StartAgain(Side side) {
  absl::Status started;
  if (side == Side::kTrainer) {
    started = cluster_->RestartTrainer();
  } else {
    cluster_->KillRollout(0);
    started = cluster_->StartRollout(0);
  }
  ASSERT_TRUE(started.ok()) << started;
}

void GpuFaults::Arm(Side side, Fault fault, Step step) {
  const Point point = PointOf(side, step);
  fired_before_ = faults::TimesFired(LogPathOf(point.side), point.name);
  const int held_ms = step == Step::kApply ? kHeldCopyMs : kHeldMs;
  const absl::Status armed = side == Side::kRollout
                                 ? faults::ArmFailpoint(PidOf(side), point.name, fault, 0)
                                 : faults::ArmFailpoint(PidOf(point.side), point.name, Fault::kDelay, held_ms);
  ASSERT_TRUE(armed.ok()) << armed;
}

void GpuFaults::AwaitFired(Side side, Fault fault, Step step, uint64_t version) {
  const Point point = PointOf(side, step);
  const absl::Time deadline = MonotonicNow() + Scaled(kFireLimit);
  while (faults::TimesFired(LogPathOf(point.side), point.name) == fired_before_) {
    ASSERT_LT(MonotonicNow(), deadline) << "the step was never reached";
    absl::SleepFor(absl::Microseconds(500));
  }
  if (side == Side::kRollout) return;
  ASSERT_TRUE(engine_->WaitForPrepare(version, Scaled(absl::Milliseconds(kHeldMs / 2))));
  absl::SleepFor(kIntoNccl);
  kill(PidOf(side), fault == Fault::kKill ? SIGKILL : SIGSTOP);
}

void GpuFaults::Judge(Side side, Fault fault, const Answer& answer, absl::Duration unblocked) const {
  std::string said(answer.report.status().message());
  if (answer.report.ok()) {
    for (const v1::ReplicaOutcome& replica : answer.report->replicas()) {
      if (replica.outcome() != v1::OUTCOME_APPLIED) absl::StrAppend(&said, replica.replica(), ": ", replica.reason());
    }
  }
  EXPECT_LE(unblocked, Scaled(fault == Fault::kKill ? kKilledLimit : kStoppedLimit)) << said;
  EXPECT_TRUE(side == Side::kTrainer || absl::StrContains(said, "rollout-0")) << "the culprit is not named: " << said;
}

void GpuFaults::RunCell(Side side, Fault fault, Step step, uint64_t* version) {
  const uint64_t before = *version, during = before + 1, after = before + 2;
  const Bytes held_before = before > 0 ? Expected() : Bytes();
  ASSERT_NO_FATAL_FAILURE(Train(static_cast<uint32_t>(during)));
  const Bytes held_during = Expected();
  ASSERT_NO_FATAL_FAILURE(Arm(side, fault, step));
  auto answered = std::async(std::launch::async, [this, during] {
    auto report = Publish(during);
    return Answer{std::move(report), MonotonicNow()};
  });
  AwaitFired(side, fault, step, during);
  const absl::Time fault_at = MonotonicNow();
  if (HasFatalFailure()) {
    answered.wait();
    return;
  }
  if (side == Side::kTrainer && fault == Fault::kKill) {
    while (!faults::HasEnded(PidOf(side)) && MonotonicNow() < fault_at + kHardLimit) usleep(500);
    ASSERT_NO_FATAL_FAILURE(StartAgain(side));
  }
  std::optional<absl::Time> let_go;
  if (side == Side::kTrainer) {
    const absl::Duration limit = Scaled(fault == Fault::kKill ? kKilledLimit : kStoppedLimit) + kMessageSlack;
    let_go = engine_->AwaitLetGo(fault_at, kHardLimit);
    EXPECT_TRUE(let_go.has_value()) << "the rollout still holds its engine";
    EXPECT_LE(let_go.value_or(fault_at) - fault_at, limit) << "the rollout waited for its trainer";
  }
  const Answer answer = answered.get();
  const absl::Duration unblocked = answer.at - fault_at;
  Judge(side, fault, answer, unblocked);
  // Whole: what was served, or what was being published. An engine whose agent died while it copied is paused.
  if (before > 0 && !(side == Side::kRollout && step == Step::kApply)) {
    const Bytes held = engine_->Memory();
    EXPECT_TRUE(held == held_before || held == held_during) << "torn";
  }

  if (fault == Fault::kStop) kill(PidOf(side), SIGCONT);
  if (fault == Fault::kKill && side == Side::kRollout) StartAgain(side);
  ASSERT_FALSE(HasFatalFailure());
  ASSERT_NO_FATAL_FAILURE(WaitUntilSettled());
  const absl::Duration healed = MonotonicNow() - fault_at;
  ASSERT_NO_FATAL_FAILURE(Train(static_cast<uint32_t>(after)));
  const absl::Time next_at = MonotonicNow();
  const auto next = Publish(after);
  const absl::Duration took = MonotonicNow() - next_at;
  ASSERT_TRUE(next.ok()) << next.status();
  ASSERT_EQ(next->replicas_size(), 1);
  EXPECT_EQ(next->replicas(0).outcome(), v1::OUTCOME_APPLIED) << next->replicas(0).reason();
  ASSERT_TRUE(engine_->WaitForVersion(after));
  EXPECT_TRUE(engine_->Memory() == Expected()) << "the next version is not what was published";
  *version = after;
  std::printf(
      "GPUCELL|%s|%s|%s|%s|publish answered after %.2f s|engine let go after %s|ready after %.2f s|next %.2f s\n",
      NameOf(side), NameOf(fault), NameOf(step), answer.report.ok() ? "committed" : "failed", InSeconds(unblocked),
      let_go.has_value() ? absl::StrCat(absl::FormatDuration(*let_go - fault_at)).c_str() : "-", InSeconds(healed),
      InSeconds(took));
  std::fflush(stdout);
}

}  // namespace wsync::gpu
