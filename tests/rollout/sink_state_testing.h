// A sink's mind that is told events and says in words what it wants done.
#ifndef WSYNC_TESTS_ROLLOUT_SINK_STATE_TESTING_H_
#define WSYNC_TESTS_ROLLOUT_SINK_STATE_TESTING_H_

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/rollout/sink_state.h"

namespace wsync {

inline constexpr Hash128 kPlan{1, 2};
inline constexpr Hash128 kContent{7, 7};

class SinkStateTest : public ::testing::Test {
 protected:
  // Every action as a word, in order.
  std::vector<std::string> Step(const sink::Event& event);
  const event::Failed* LastFailed() const {
    for (const sink::Action& action : last_) {
      const auto* report = std::get_if<sink::Report>(&action);
      if (report == nullptr) continue;
      if (const auto* failed = std::get_if<event::Failed>(&report->message)) return failed;
    }
    return nullptr;
  }
  std::string NotReadyReason() const {
    for (const sink::Action& action : last_) {
      const auto* report = std::get_if<sink::Report>(&action);
      if (report == nullptr) continue;
      if (const auto* ready = std::get_if<event::ReadyChanged>(&report->message)) return ready->reason;
    }
    return "no Ready was sent";
  }

  void Use(SinkMode mode) { state_.emplace(SinkOptions{.mode = mode}); }
  void Attach() {
    Step(sink::EngineAttached{"vllm (pid 1)"});
    Step(sink::EngineOpened{});
  }
  void MakeReady(SinkMode mode = SinkMode::kStaged) {
    Use(mode);
    Step(sink::Linked{});
    Step(sink::CatalogChanging{});
    Step(sink::PlanReady{absl::OkStatus(), kPlan});
    Attach();
    ASSERT_EQ(state_->not_ready(), "");
  }
  static sink::Begin Begin(uint64_t epoch, uint64_t version) {
    return {.epoch = epoch, .version = version, .plan_hash = kPlan, .session = "s", .rank = 1, .world = 2};
  }
  void Receive(uint64_t epoch, uint64_t version) {
    Step(Begin(epoch, version));
    Step(sink::Connected{});
  }
  void Stage(uint64_t epoch, uint64_t version) {
    Receive(epoch, version);
    Step(sink::Received{.digest = kContent, .wrote = true});
  }
  void Commit(uint64_t epoch, uint64_t version) { Step(sink::Commit{epoch, version, kContent}); }
  void Serve(uint64_t epoch, uint64_t version) {
    Stage(epoch, version);
    Commit(epoch, version);
    Step(sink::EnginePaused{version});
    Step(sink::ApplyDone{});
    ASSERT_EQ(state_->serving().version, version);
  }

  std::optional<SinkState> state_;
  absl::Time now_ = absl::UnixEpoch();
  sink::Actions last_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_SINK_STATE_TESTING_H_
