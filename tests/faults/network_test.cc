// Broken networks: cut both ways and one way, lossy, slow, reset in the middle of a stream, half-open; and strangers at
// the ports. The second rollout lives in a network namespace of its own, or behind a proxy. Skipped, visibly, where
// namespaces cannot be made.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "tests/faults/group_test.h"
#include "tests/faults/private_network.h"
#include "tests/faults/proxy.h"
#include "tests/faults/strangers.h"

namespace wsync::faults {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const absl::Duration kCutOff = absl::Seconds(5) + kSlack;
constexpr absl::Duration kHeld = absl::Seconds(6);

absl::Status network = absl::UnknownError("not entered");

class Network : public GroupTest {
 protected:
  void SetUp() override {
    if (!network.ok()) GTEST_SKIP() << network;
    ASSERT_TRUE(PrivateNetwork::Heal().ok());
    StartGroup({.rollouts = 2, .listen_host = PrivateNetwork::kHere, .network_of = {{1, PrivateNetwork::other()}}});
  }
  void TearDown() override {
    if (network.ok()) (void)PrivateNetwork::Heal();
  }

  // The sink is cut off while it stands at that step. `applies`: it has been told to take the version.
  void ExpectCutOffIsSurvived(const std::string& step, const std::string& phase, absl::Duration held, int incoming,
                              int outgoing, bool applies = false) {
    ASSERT_NO_FATAL_FAILURE(HoldAt("rollout-1", group_->agents().rollout_pid(1), step, held));
    ASSERT_TRUE(PrivateNetwork::Drop(incoming, outgoing).ok());
    const absl::Time cut = MonotonicNow();
    const auto published = group_->AwaitPublished(Scaled(kHardLimit));
    ASSERT_TRUE(published.has_value());
    std::printf("NETWORK|cut at %s in %d%% out %d%%|%.2f\n", step.c_str(), incoming, outgoing,
                absl::ToDoubleSeconds(published->at - cut));
    EXPECT_LT(published->at - cut, Scaled(kCutOff));
    EXPECT_TRUE(published->ok()) << published->message;
    EXPECT_EQ(published->outcomes.at("rollout-0"), v1::OUTCOME_APPLIED);
    EXPECT_EQ(published->outcomes.at("rollout-1"), v1::OUTCOME_LEFT_OUT);
    EXPECT_THAT(published->message, ContainsRegex("replica rollout-1 rank 0 .* in phase (" + phase +
                                                  ").*, last heard of [0-9.]+ s before"));
    EXPECT_TRUE(group_->AwaitVersion(0, version_, Scaled(kSlack)).ok());
    // It serves on what it had, unless it was told to take the version before it was cut off.
    const absl::Status held_by_it = applies ? group_->AwaitVersion(1, version_, Scaled(held + kSlack))
                                            : group_->CheckContent(1, {version_ - 1}, false);
    EXPECT_TRUE(held_by_it.ok()) << held_by_it;
    ASSERT_TRUE(PrivateNetwork::Heal().ok());
    const absl::Status caught_up = group_->AwaitVersion(1, version_, Scaled(absl::Seconds(20)));
    EXPECT_TRUE(caught_up.ok()) << caught_up;
    ASSERT_NO_FATAL_FAILURE(AwaitReady());
    Commit();
  }
};

constexpr char kMiddle[] = "rollout.bucket.middle";
constexpr absl::Duration kMoment = absl::Milliseconds(500);  // until it is cut off

TEST_F(Network, CutBothWaysInATransfer) { ExpectCutOffIsSurvived(kMiddle, "receive", kHeld, 100, 100); }
TEST_F(Network, OnlyWhatTheSinkSendsIsLost) { ExpectCutOffIsSurvived(kMiddle, "receive", kHeld, 100, 0); }
TEST_F(Network, OnlyWhatTheSourceSendsIsLost) { ExpectCutOffIsSurvived(kMiddle, "receive", kHeld, 0, 100); }
TEST_F(Network, CutBeforeTheSinkConnects) { ExpectCutOffIsSurvived("rollout.connect", "connect", kMoment, 100, 100); }
TEST_F(Network, CutBeforeTheSinkSaysThatItHasEverything) {
  ExpectCutOffIsSurvived("rollout.staged", "receive", kMoment, 100, 100);
}
TEST_F(Network, CutBetweenTheCommitAndItsAcknowledgement) {
  ExpectCutOffIsSurvived("rollout.commit", "pause", kMoment, 100, 100, /*applies=*/true);
}
TEST_F(Network, OnlyTheAcknowledgementOfACommitIsLost) {
  ExpectCutOffIsSurvived("rollout.applied", "pause|apply", kMoment, 100, 0, /*applies=*/true);
}

// It comes as it would into an empty house: a version is not held up by who is cut off on its way in.
TEST_F(Network, CutBeforeASinkIsReady) {
  group_->agents().KillRollout(1);
  setenv("WSYNC_FAILPOINTS", ArmCommand("rollout.catalog", Fault::kDelay, 500).c_str(), 1);
  const absl::Status launched = group_->agents().LaunchRollout(1);
  unsetenv("WSYNC_FAILPOINTS");
  ASSERT_TRUE(launched.ok()) << launched;
  const absl::Time deadline = MonotonicNow() + Scaled(kHardLimit);
  while (group_->TimesFired("rollout-1", "rollout.catalog") == 0) {
    ASSERT_LT(MonotonicNow(), deadline) << "it never came that far";
    usleep(1000);
  }
  ASSERT_TRUE(PrivateNetwork::Drop(100, 100).ok());
  const auto published = group_->Publish(++version_, Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  EXPECT_TRUE(published->ByAll()) << published->message;
  EXPECT_LT(published->took, Scaled(kKilled));
  EXPECT_EQ(published->outcomes.count("rollout-1"), 0u);
  ASSERT_TRUE(PrivateNetwork::Heal().ok());
  EXPECT_TRUE(group_->AwaitVersion(1, version_, Scaled(absl::Seconds(20))).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

TEST_F(Network, AFifthOfAllPacketsLostIsOnlySlow) {
  ASSERT_TRUE(PrivateNetwork::Drop(20, 20).ok());
  for (int i = 0; i < 2; ++i) {
    const auto published = group_->Publish(++version_, Scaled(absl::Seconds(40)));
    ASSERT_TRUE(published.has_value());
    EXPECT_TRUE(published->ok()) << published->message;
    EXPECT_TRUE(group_->CheckContent(0, {version_}, false).ok());
  }
  ASSERT_TRUE(PrivateNetwork::Heal().ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

// ---- behind a proxy: no namespace needed

class Proxied : public GroupTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(StartGroup());
    auto proxy = Proxy::Start("127.0.0.1", group_->agents().coordinator());
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
    group_->agents().KillRollout(1);
    group_->agents().Dial(1, proxy_->address());
    ASSERT_TRUE(group_->agents().StartRollout(1).ok());
    ASSERT_NO_FATAL_FAILURE(AwaitReady());
    Commit();
  }
  void TearDown() override {
    group_.reset();  // before the proxy: its threads end with their connections
  }

  std::unique_ptr<Proxy> proxy_;
};

TEST_F(Proxied, AFarAwaySinkTakesItsTimeAndLosesNothing) {
  proxy_->Delay(absl::Milliseconds(80));
  Commit();
  Commit();
}

TEST_F(Proxied, AResetInTheMiddleOfAStreamHoldsUpNobody) {
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(absl::Seconds(1)));
  proxy_->ResetAll();
  const absl::Time reset = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  std::printf("NETWORK|connection reset|%.2f\n", absl::ToDoubleSeconds(published->at - reset));
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_LT(published->at - reset, Scaled(absl::Milliseconds(1500)));
  AwaitServed();
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

TEST_F(Proxied, AHalfOpenConnectionIsNoticedBySilence) {
  ASSERT_NO_FATAL_FAILURE(HoldInTransfer(absl::Seconds(1)));
  proxy_->Swallow(true);
  const absl::Time begun = MonotonicNow();
  const auto published = group_->AwaitPublished(Scaled(kHardLimit));
  ASSERT_TRUE(published.has_value());
  std::printf("NETWORK|half-open connection|%.2f\n", absl::ToDoubleSeconds(published->at - begun));
  EXPECT_LT(published->at - begun, Scaled(kCutOff));
  EXPECT_TRUE(published->ok()) << published->message;
  proxy_->Swallow(false);
  proxy_->ResetAll();
  EXPECT_TRUE(group_->AwaitVersion(1, version_, Scaled(absl::Seconds(20))).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

// At every port that a job's agents have open: the coordinator's, where the data plane is, too.
TEST_F(Proxied, StrangersAtThePortsChangeNothing) {
  const pid_t trainer = group_->agents().trainer_pid();
  ASSERT_THAT(ListeningAddresses(trainer), SizeIs(1));
  for (int i = 0; i < 2; ++i) EXPECT_THAT(ListeningAddresses(group_->agents().rollout_pid(i)), IsEmpty());
  for (int round = 0; round < 3; ++round) {
    group_->BeginPublish(++version_);
    std::vector<int> open;
    for (const std::string& address : ListeningAddresses(trainer)) Greet(address, 5, &open);
    EXPECT_THAT(open, SizeIs(5 * Greetings().size()));
    const auto published = group_->AwaitPublished(Scaled(kHardLimit));
    for (const int fd : open) close(fd);
    ASSERT_TRUE(published.has_value());
    EXPECT_TRUE(published->ok()) << published->message;
    AwaitServed();
  }
}

}  // namespace
}  // namespace wsync::faults

int main(int argc, char** argv) {
  // Before any thread. Where it works the proxied tests run in there, too.
  wsync::faults::network = wsync::faults::PrivateNetwork::Enter();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
