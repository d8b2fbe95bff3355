// What every backend's Transport must do.
#ifndef WSYNC_TESTS_BACKEND_CONTRACT_TRANSPORT_CONTRACT_H_
#define WSYNC_TESTS_BACKEND_CONTRACT_TRANSPORT_CONTRACT_H_

#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/backend/contract/agent.h"

namespace wsync::contract {

inline constexpr int64_t kMiB = int64_t{1} << 20;

// Bytes that differ with their position and with `salt`.
inline Bytes Pattern(int64_t bytes, uint32_t salt) {
  Bytes pattern(bytes);
  uint32_t state = salt * 2654435761u + 1;
  for (std::byte& b : pattern) {
    state = state * 1664525 + 1013904223;
    b = static_cast<std::byte>(state >> 24);
  }
  return pattern;
}

// A session of `world` ranks in this process, each with an agent of its own: rank r is agent first_agent + r.
class SessionRig {
 public:
  SessionRig(const BackendParam& param, int32_t world, int32_t first_agent = 0) {
    for (int32_t rank = 0; rank < world; ++rank) agents_.push_back(param.make(first_agent + rank));
    token_ = agents_[0]->backend().NewSessionToken();
    for (int32_t rank = 0; rank < world; ++rank) transports_.push_back(NewTransport(rank));
  }
  ~SessionRig() {
    for (auto& transport : transports_) transport = nullptr;  // before any agent goes
  }

  SessionSpec Spec(int32_t rank) const {
    return {.token = token_, .rank = rank, .world = world(), .root_address = agents_[0]->root_address()};
  }
  std::unique_ptr<Transport> NewTransport(int32_t rank) {
    auto made = agents_[rank]->backend().NewTransport(Spec(rank));
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  // Connects the given ranks side by side; their statuses in the same order.
  std::vector<absl::Status> Connect(const std::vector<int32_t>& ranks, absl::Time deadline) {
    std::vector<absl::Status> statuses(ranks.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < ranks.size(); ++i) {
      threads.emplace_back([&, i] { statuses[i] = transports_[ranks[i]]->Connect(deadline); });
    }
    for (std::thread& thread : threads) thread.join();
    return statuses;
  }
  void ConnectAll() {
    std::vector<int32_t> ranks;
    for (int32_t rank = 0; rank < world(); ++rank) ranks.push_back(rank);
    for (const absl::Status& status : Connect(ranks, HangDeadline())) ASSERT_TRUE(status.ok()) << status;
  }

  int32_t world() const { return static_cast<int32_t>(agents_.size()); }
  Agent& agent(int32_t rank) { return *agents_[rank]; }
  Transport& at(int32_t rank) { return *transports_[rank]; }
  void Destroy(int32_t rank) { transports_[rank] = nullptr; }

 private:
  std::vector<std::unique_ptr<Agent>> agents_;
  std::vector<std::unique_ptr<Transport>> transports_;
  std::string token_;
};

class TransportContract : public BackendContract {
 protected:
  // `wanted` ranks, or as many as there can be.
  static int32_t World(int32_t wanted) { return std::min(wanted, GetParam().max_world); }
  // What the coordinator does when a rank is gone, where the transport does not see it.
  static void TellOfLostRank(Transport& transport) {
    if (!GetParam().sees_lost_ranks) transport.Cancel(absl::UnavailableError("the coordinator lost a rank"));
  }
  // Memory of a rank's device with given contents.
  std::unique_ptr<Buffer> Load(Agent& agent, const Bytes& bytes) {
    auto buffer = Allocate(agent, static_cast<int64_t>(bytes.size()));
    agent.ToDevice(buffer->data(), bytes);
    return buffer;
  }
};

TEST_P(TransportContract, EverySinkGetsTheSourcesBytesWhateverTheirNumber) {
  const std::vector<int64_t> sizes = {1,        127,      128,          129, 65'536, kMiB - 1, kMiB,
                                      kMiB + 1, 3 * kMiB, 5 * kMiB + 3, 0,   7,      0};
  for (const int32_t world : {2, 3, 5}) {
    if (world > GetParam().max_world) break;
    SessionRig rig(GetParam(), world);
    rig.ConnectAll();
    for (size_t i = 0; i < sizes.size(); ++i) {
      const Bytes sent = Pattern(sizes[i], static_cast<uint32_t>(i));
      const auto source = Load(rig.agent(0), Pattern(sizes[i] + 1, static_cast<uint32_t>(i)));
      std::vector<std::unique_ptr<Buffer>> sinks;
      std::vector<CompletionPtr> received;
      for (int32_t rank = 1; rank < world; ++rank) {
        // Poison that the bytes must replace, and some behind them that nothing may touch.
        sinks.push_back(Load(rig.agent(rank), Bytes(sizes[i] + 64, std::byte{0xA5})));
        received.push_back(rig.at(rank).Broadcast(sinks.back()->data(), sizes[i], nullptr));
      }
      EXPECT_TRUE(WaitFor(rig.at(0).Broadcast(source->data(), sizes[i], nullptr)).ok());
      Bytes expected = sent;
      expected.resize(sizes[i] + 64, std::byte{0xA5});
      for (int32_t rank = 1; rank < world; ++rank) {
        EXPECT_TRUE(WaitFor(received[rank - 1]).ok());
        EXPECT_EQ(rig.agent(rank).FromDevice(sinks[rank - 1]->data(), sizes[i] + 64), expected)
            << sizes[i] << " bytes at rank " << rank << " of " << world;
      }
    }
  }
}

TEST_P(TransportContract, BroadcastsPostedAheadMatchByOrder) {
  constexpr int kCount = 40;
  constexpr int64_t kBytes = 100'000;
  const int32_t world = World(3);
  SessionRig rig(GetParam(), world);
  rig.ConnectAll();
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<CompletionPtr> all;
  for (int i = 0; i < kCount; ++i) {
    buffers.push_back(Load(rig.agent(0), Pattern(kBytes, i)));
    all.push_back(rig.at(0).Broadcast(buffers.back()->data(), kBytes, nullptr));
  }
  std::vector<std::unique_ptr<Buffer>> received;
  for (int32_t rank = 1; rank < world; ++rank) {
    for (int i = 0; i < kCount; ++i) {
      received.push_back(Allocate(rig.agent(rank), kBytes));
      all.push_back(rig.at(rank).Broadcast(received.back()->data(), kBytes, nullptr));
    }
  }
  for (const CompletionPtr& completion : all) ASSERT_TRUE(WaitFor(completion).ok());
  for (int i = 0; i < (world - 1) * kCount; ++i) {
    EXPECT_EQ(rig.agent(1 + i / kCount).FromDevice(received[i]->data(), kBytes), Pattern(kBytes, i % kCount));
  }
  for (int32_t rank = 0; rank < world; ++rank) EXPECT_EQ(rig.at(rank).moved_bytes(), kCount * kBytes);
}

TEST_P(TransportContract, ABroadcastStartsAfterWhatItWasOrderedAfter) {
  SessionRig first(GetParam(), 2), second(GetParam(), 2, /*first_agent=*/1);  // its source is where the first's sink is
  first.ConnectAll();
  second.ConnectAll();
  const int64_t bytes = 2 * kMiB;
  const auto source = Load(first.agent(0), Pattern(bytes, 1));
  const auto relay = Load(first.agent(1), Bytes(bytes, std::byte{0xA5}));
  const auto end = Allocate(second.agent(1), bytes);
  // The second session sends on what the first receives, and was told to before anything came.
  const CompletionPtr relayed = first.at(1).Broadcast(relay->data(), bytes, nullptr);
  const CompletionPtr sent = second.at(0).Broadcast(relay->data(), bytes, relayed);
  const CompletionPtr arrived = second.at(1).Broadcast(end->data(), bytes, nullptr);
  EXPECT_FALSE(sent->Poll().has_value());
  first.at(0).Broadcast(source->data(), bytes, nullptr);
  EXPECT_TRUE(WaitFor(sent).ok());
  EXPECT_TRUE(WaitFor(arrived).ok());
  EXPECT_EQ(second.agent(1).FromDevice(end->data(), bytes), Pattern(bytes, 1));
}

TEST_P(TransportContract, AReceiveStartsAfterWhatItWasOrderedAfter) {
  SessionRig first(GetParam(), 2), second(GetParam(), 2);
  first.ConnectAll();
  second.ConnectAll();
  const auto one = Load(first.agent(0), Pattern(kMiB, 1)), two = Load(second.agent(0), Pattern(kMiB, 2));
  const auto slot = Allocate(first.agent(1), kMiB);
  // Both sessions receive into one slot; the second waits although its bytes are there first.
  const CompletionPtr early = first.at(1).Broadcast(slot->data(), kMiB, nullptr);
  const CompletionPtr late = second.at(1).Broadcast(slot->data(), kMiB, early);
  second.at(0).Broadcast(two->data(), kMiB, nullptr);
  EXPECT_FALSE(late->Poll().has_value());
  first.at(0).Broadcast(one->data(), kMiB, nullptr);
  EXPECT_TRUE(WaitFor(early).ok());
  EXPECT_TRUE(WaitFor(late).ok());
  EXPECT_EQ(first.agent(1).FromDevice(slot->data(), kMiB), Pattern(kMiB, 2));
}

TEST_P(TransportContract, ABroadcastAfterFailedWorkFailsWithItsErrorAndEndsTheSession) {
  SessionRig rig(GetParam(), 2), other(GetParam(), 2);
  rig.ConnectAll();
  other.ConnectAll();
  const auto memory = Allocate(rig.agent(0), kMiB), received = Allocate(rig.agent(1), kMiB);
  const CompletionPtr failed = other.at(1).Broadcast(received->data(), kMiB, nullptr);
  other.at(1).Cancel(absl::InvalidArgumentError("a NaN in tensor x"));
  const CompletionPtr pending = rig.at(1).Broadcast(received->data(), kMiB, nullptr);
  EXPECT_THAT(WaitFor(rig.at(0).Broadcast(memory->data(), kMiB, failed)),
              FailsWith(absl::StatusCode::kInvalidArgument, "a NaN in tensor x"));
  EXPECT_THAT(WaitFor(rig.at(0).Broadcast(memory->data(), kMiB, nullptr)),
              FailsWith(absl::StatusCode::kInvalidArgument, "a NaN in tensor x"));
  TellOfLostRank(rig.at(1));
  EXPECT_FALSE(WaitFor(pending).ok());
}

TEST_P(TransportContract, ASourceWithoutSinksConnectsAndCompletesAtOnce) {
  SessionRig rig(GetParam(), 1);
  rig.ConnectAll();
  const auto memory = Allocate(rig.agent(0), kMiB);
  EXPECT_TRUE(WaitFor(rig.at(0).Broadcast(memory->data(), kMiB, nullptr)).ok());
}

TEST_P(TransportContract, CancelByTheSourceFailsAStalledBroadcastOnEveryRankSoon) {
  const int32_t last = World(3) - 1;  // never takes it
  SessionRig rig(GetParam(), last + 1);
  rig.ConnectAll();
  const int64_t bytes = GetParam().stall_bytes;
  const auto source = Allocate(rig.agent(0), bytes), at_last = Allocate(rig.agent(last), bytes);
  std::vector<std::unique_ptr<Buffer>> sinks;
  std::vector<CompletionPtr> received;
  for (int32_t rank = 1; rank < last; ++rank) {
    sinks.push_back(Allocate(rig.agent(rank), bytes));
    received.push_back(rig.at(rank).Broadcast(sinks.back()->data(), bytes, nullptr));
  }
  const CompletionPtr sent = rig.at(0).Broadcast(source->data(), bytes, nullptr);
  std::thread([&] { rig.at(0).Cancel(absl::AbortedError("the round is over")); }).join();
  EXPECT_THAT(WaitFor(sent), FailsWith(absl::StatusCode::kAborted, "the round is over"));
  EXPECT_THAT(WaitFor(rig.at(0).Broadcast(source->data(), bytes, nullptr)),
              FailsWith(absl::StatusCode::kAborted, "the round is over"));
  for (int32_t rank = 1; rank < last; ++rank) {
    TellOfLostRank(rig.at(rank));
    WaitFor(received[rank - 1]).IgnoreError();  // ends either way: it may have had all its bytes
  }
  const CompletionPtr late = rig.at(last).Broadcast(at_last->data(), bytes, nullptr);
  TellOfLostRank(rig.at(last));
  EXPECT_FALSE(WaitFor(late).ok());
}

TEST_P(TransportContract, CancelByASinkFailsItsPendingAndItsLaterBroadcasts) {
  SessionRig rig(GetParam(), 2);
  rig.ConnectAll();
  const auto memory = Allocate(rig.agent(1), kMiB);
  const CompletionPtr pending = rig.at(1).Broadcast(memory->data(), kMiB, nullptr);
  std::thread([&] { rig.at(1).Cancel(absl::AbortedError("engine left")); }).join();
  rig.at(1).Cancel(absl::AbortedError("a second reason, which comes too late"));
  EXPECT_THAT(WaitFor(pending), FailsWith(absl::StatusCode::kAborted, "engine left"));
  EXPECT_THAT(WaitFor(rig.at(1).Broadcast(memory->data(), kMiB, nullptr)),
              FailsWith(absl::StatusCode::kAborted, "engine left"));
}

TEST_P(TransportContract, ASinkThatGoesMidBroadcastFailsItWithItsRankNamed) {
  if (!GetParam().sees_lost_ranks) GTEST_SKIP() << "this transport hears nothing of a lost rank";
  SessionRig rig(GetParam(), 3);
  rig.ConnectAll();
  const int64_t bytes = 64 * kMiB;
  const auto source = Allocate(rig.agent(0), bytes), first = Allocate(rig.agent(1), bytes);
  const CompletionPtr received = rig.at(1).Broadcast(first->data(), bytes, nullptr);
  const CompletionPtr sent = rig.at(0).Broadcast(source->data(), bytes, nullptr);
  rig.Destroy(2);
  WaitFor(received).IgnoreError();  // ends either way: it may have had all its bytes
  EXPECT_THAT(WaitFor(sent), FailsWith(absl::StatusCode::kUnavailable, "rank 2"));
  EXPECT_THAT(WaitFor(rig.at(0).Broadcast(source->data(), bytes, nullptr)),
              FailsWith(absl::StatusCode::kUnavailable, "rank 2"));
}

TEST_P(TransportContract, ASinkThatHasEverythingMayLeaveWhileOthersStillReceive) {
  if (!GetParam().sees_lost_ranks) GTEST_SKIP() << "this transport hears nothing of a lost rank";
  SessionRig rig(GetParam(), 3);
  rig.ConnectAll();
  const int64_t bytes = 64 * kMiB;
  const auto source = Allocate(rig.agent(0), bytes), first = Allocate(rig.agent(1), bytes);
  const auto second = Allocate(rig.agent(2), bytes);
  const CompletionPtr sent = rig.at(0).Broadcast(source->data(), bytes, nullptr);
  EXPECT_TRUE(WaitFor(rig.at(1).Broadcast(first->data(), bytes, nullptr)).ok());
  rig.Destroy(1);
  EXPECT_TRUE(WaitFor(rig.at(2).Broadcast(second->data(), bytes, nullptr)).ok());
  EXPECT_TRUE(WaitFor(sent).ok());
  // The next one would leave it out.
  EXPECT_THAT(WaitFor(rig.at(0).Broadcast(source->data(), bytes, nullptr)),
              FailsWith(absl::StatusCode::kUnavailable, "rank 1"));
}

TEST_P(TransportContract, ASourceThatGoesMidBroadcastFailsItOnTheSinks) {
  SessionRig rig(GetParam(), 2);
  rig.ConnectAll();
  const auto memory = Allocate(rig.agent(1), kMiB);
  const CompletionPtr pending = rig.at(1).Broadcast(memory->data(), kMiB, nullptr);
  rig.Destroy(0);
  TellOfLostRank(rig.at(1));
  EXPECT_FALSE(WaitFor(pending).ok());
}

TEST_P(TransportContract, TransportsWithPendingWorkLetGoOfMemoryWhenDestroyed) {
  SessionRig rig(GetParam(), 2);
  rig.ConnectAll();
  const int64_t bytes = 64 * kMiB;
  auto source = Allocate(rig.agent(0), bytes), sink = Allocate(rig.agent(1), bytes);
  const CompletionPtr sent = rig.at(0).Broadcast(source->data(), bytes, nullptr);
  const CompletionPtr received = rig.at(1).Broadcast(sink->data(), bytes, nullptr);
  rig.Destroy(0);
  source = nullptr;  // a late read would fault
  rig.Destroy(1);
  sink = nullptr;  // and so would a late write
  EXPECT_TRUE(sent->Poll().has_value());
  EXPECT_TRUE(received->Poll().has_value());
}

TEST_P(TransportContract, AConnectDeadlineNamesTheRanksThatDidNotCome) {
  SessionRig rig(GetParam(), 4);
  const std::vector<absl::Status> statuses = rig.Connect({0, 2}, MonotonicNow() + absl::Milliseconds(300));
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kDeadlineExceeded) << statuses[0];
  if (!GetParam().sees_lost_ranks) return;
  EXPECT_THAT(statuses[0], FailsWith(absl::StatusCode::kDeadlineExceeded, "rank 1"));
  EXPECT_THAT(statuses[0], FailsWith(absl::StatusCode::kDeadlineExceeded, "rank 3"));
  EXPECT_EQ(std::string(statuses[0].message()).find("rank 2"), std::string::npos) << statuses[0];
}

TEST_P(TransportContract, ASinkWhoseSourceDoesNotComeGivesUp) {
  SessionRig rig(GetParam(), 2);
  EXPECT_FALSE(rig.Connect({1}, MonotonicNow() + absl::Milliseconds(300))[0].ok());
}

TEST_P(TransportContract, CancelEndsAConnectThatWaits) {
  SessionRig rig(GetParam(), 2);
  auto waiting = std::async(std::launch::async, [&] { return rig.at(0).Connect(HangDeadline()); });
  rig.at(0).Cancel(absl::AbortedError("no more"));
  EXPECT_THAT(waiting.get(), FailsWith(absl::StatusCode::kAborted, "no more"));
  rig.at(1).Cancel(absl::AbortedError("nor here"));
  EXPECT_THAT(rig.at(1).Connect(HangDeadline()), FailsWith(absl::StatusCode::kAborted, "nor here"));
}

TEST_P(TransportContract, SessionsOfOneSourceDoNotMix) {
  SessionRig first(GetParam(), 2), second(GetParam(), 2);
  first.ConnectAll();
  second.ConnectAll();
  const auto one = Load(first.agent(0), Pattern(kMiB, 1)), two = Load(second.agent(0), Pattern(kMiB, 2));
  const auto at_one = Allocate(first.agent(1), kMiB), at_two = Allocate(second.agent(1), kMiB);
  first.at(0).Broadcast(one->data(), kMiB, nullptr);
  second.at(0).Broadcast(two->data(), kMiB, nullptr);
  EXPECT_TRUE(WaitFor(second.at(1).Broadcast(at_two->data(), kMiB, nullptr)).ok());
  EXPECT_TRUE(WaitFor(first.at(1).Broadcast(at_one->data(), kMiB, nullptr)).ok());
  EXPECT_EQ(first.agent(1).FromDevice(at_one->data(), kMiB), Pattern(kMiB, 1));
  EXPECT_EQ(second.agent(1).FromDevice(at_two->data(), kMiB), Pattern(kMiB, 2));
}

TEST_P(TransportContract, BroadcastBeforeConnectFails) {
  SessionRig rig(GetParam(), 2);
  const auto memory = Allocate(rig.agent(0), 8);
  for (int32_t rank = 0; rank < 2; ++rank) {
    EXPECT_THAT(WaitFor(rig.at(rank).Broadcast(memory->data(), 8, nullptr)),
                FailsWith(absl::StatusCode::kFailedPrecondition, "connect first"));
  }
}

TEST_P(TransportContract, SpecsThatMakeNoSenseAreRefused) {
  const auto agent = MakeAgent();
  const SessionSpec good{.token = "t", .rank = 1, .world = 2, .root_address = agent->root_address()};
  for (const auto& [rank, world] : std::vector<std::pair<int32_t, int32_t>>{{2, 2}, {-1, 2}, {0, 0}}) {
    SessionSpec bad = good;
    bad.rank = rank;
    bad.world = world;
    EXPECT_EQ(agent->backend().NewTransport(bad).status().code(), absl::StatusCode::kInvalidArgument);
  }
  SessionSpec tokenless = good;
  tokenless.token = "";
  EXPECT_EQ(agent->backend().NewTransport(tokenless).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(TransportContract, TokensDoNotRepeat) {
  const auto agent = MakeAgent();
  EXPECT_NE(agent->backend().NewSessionToken(), agent->backend().NewSessionToken());
}

}  // namespace wsync::contract

#endif  // WSYNC_TESTS_BACKEND_CONTRACT_TRANSPORT_CONTRACT_H_
