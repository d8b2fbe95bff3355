// The data plane against peers that are not ours: sinks that lie about themselves, and a source that sends nonsense.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/backend/host/data_chunk.h"
#include "server/backend/host/session_registry.h"
#include "tests/backend/host_agent.h"
#include "wsync/v1/data_plane.grpc.pb.h"

namespace wsync::host {
namespace {

using contract::FailsWith;
using contract::HangDeadline;

// A sink by hand: one Receive call through the generated stub.
class RawSink {
 public:
  RawSink(const std::string& address, const std::string& token, int32_t rank)
      : stub_(v1::DataPlane::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    v1::ReceiveRequest request;
    request.set_session_token(token);
    request.set_rank(rank);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    reader_ = stub_->Receive(&context_, request);
  }
  bool Read(v1::DataChunk* chunk) { return reader_->Read(chunk); }
  grpc::Status Finish() { return reader_->Finish(); }
  void Cancel() { context_.TryCancel(); }

 private:
  std::unique_ptr<v1::DataPlane::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::DataChunk>> reader_;
};

class DataPlaneTest : public testing::Test {
 protected:
  static HostBackendOptions Patient(absl::Duration patience) {
    return {.threads = 2, .unknown_session_patience = patience};
  }
  std::unique_ptr<Transport> Source(HostAgent& agent, int32_t world) {
    auto made = agent.backend().NewTransport({.token = token_, .rank = 0, .world = world});
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  std::future<absl::Status> ConnectAside(Transport& transport) {
    return std::async(std::launch::async, [&] { return transport.Connect(HangDeadline()); });
  }

  const std::string token_ = "0123456789abcdef0123456789abcdef";
};

TEST_F(DataPlaneTest, AnyProtobufClientReadsTheStream) {
  HostAgent agent;
  const auto source = Source(agent, 2);
  auto connected = ConnectAside(*source);
  RawSink sink(agent.root_address(), token_, 1);
  ASSERT_TRUE(connected.get().ok());
  std::vector<std::byte> sent(kMaxChunkBytes + 5, std::byte{7});
  const CompletionPtr empty = source->Broadcast(sent.data(), 0, nullptr);
  const CompletionPtr done = source->Broadcast(sent.data(), static_cast<int64_t>(sent.size()), nullptr);
  v1::DataChunk chunk;
  ASSERT_TRUE(sink.Read(&chunk));
  EXPECT_EQ(chunk.sequence(), 1u);
  EXPECT_EQ(chunk.payload(), std::string(kMaxChunkBytes, 7));
  ASSERT_TRUE(sink.Read(&chunk));
  EXPECT_EQ(chunk.offset_bytes(), static_cast<uint64_t>(kMaxChunkBytes));
  EXPECT_EQ(chunk.payload(), std::string(5, 7));
  EXPECT_TRUE(empty->Wait(HangDeadline()).ok());
  EXPECT_TRUE(done->Wait(HangDeadline()).ok());
}

TEST_F(DataPlaneTest, ASinkThatComesBeforeItsSessionIsLetInWhenThatOpens) {
  std::promise<void> arrived;
  std::atomic<bool> first = true;
  HostBackendOptions options = Patient(absl::Seconds(60));
  options.authorize = [&](const grpc::ServerContextBase&) {
    if (first.exchange(false)) arrived.set_value();
    return absl::OkStatus();
  };
  HostAgent agent(options);
  RawSink sink(agent.root_address(), token_, 1);
  arrived.get_future().wait();
  const auto source = Source(agent, 2);
  EXPECT_TRUE(source->Connect(HangDeadline()).ok());
}

TEST_F(DataPlaneTest, AWrongTokenIsRefusedAfterTheSourcesPatience) {
  HostAgent agent(Patient(absl::Milliseconds(50)));
  const auto source = Source(agent, 2);
  auto connected = ConnectAside(*source);
  for (const std::string& wrong : {std::string(32, '0'), absl::StrCat(token_, "0"), std::string("0")}) {
    const grpc::Status status = RawSink(agent.root_address(), wrong, 1).Finish();
    EXPECT_EQ(status.error_code(), grpc::NOT_FOUND);
    EXPECT_EQ(status.error_message().find(token_), std::string::npos);
  }
  auto sink =
      agent.backend().NewTransport({.token = "wrong", .rank = 1, .world = 2, .root_address = agent.root_address()});
  EXPECT_THAT((*sink)->Connect(HangDeadline()), FailsWith(absl::StatusCode::kNotFound, "no session has this token"));
  source->Cancel(absl::AbortedError("enough"));
  EXPECT_EQ(connected.get(), absl::AbortedError("enough"));
}

TEST_F(DataPlaneTest, ARankIsLetInOnceAndOnlyIfTheSessionHasIt) {
  HostAgent agent;
  const auto source = Source(agent, 3);
  auto connected = ConnectAside(*source);
  RawSink one(agent.root_address(), token_, 1);
  RawSink two(agent.root_address(), token_, 2);
  ASSERT_TRUE(connected.get().ok());
  EXPECT_EQ(RawSink(agent.root_address(), token_, 1).Finish().error_code(), grpc::ALREADY_EXISTS);
  for (const int32_t rank : {0, 3, -1, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(RawSink(agent.root_address(), token_, rank).Finish().error_code(), grpc::PERMISSION_DENIED) << rank;
  }
}

// One token opened any rank's stream, so any sink that of another.
TEST_F(DataPlaneTest, ARanksTokenOpensItsOwnStreamAndNoOther) {
  HostAgent agent(Patient(absl::Milliseconds(50)));
  auto made = agent.backend().NewTransport(
      {.token = token_, .rank = 0, .world = 3, .peer_tokens = {"token-of-1", "token-of-2"}});
  ASSERT_TRUE(made.ok()) << made.status();
  const auto source = *std::move(made);
  auto connected = ConnectAside(*source);
  RawSink one(agent.root_address(), "token-of-1", 1);
  for (;;) {
    const auto peers = source->peers();
    ASSERT_TRUE(peers.has_value() && peers->size() == 2);
    if ((*peers)[0].connected) break;
  }
  EXPECT_EQ(RawSink(agent.root_address(), "token-of-1", 2).Finish().error_code(), grpc::PERMISSION_DENIED);
  EXPECT_EQ(RawSink(agent.root_address(), "token-of-2", 1).Finish().error_code(), grpc::PERMISSION_DENIED);
  EXPECT_EQ(RawSink(agent.root_address(), token_, 2).Finish().error_code(), grpc::NOT_FOUND) << "it is the source's";
  EXPECT_FALSE((*source->peers())[1].connected);
  RawSink two(agent.root_address(), "token-of-2", 2);
  EXPECT_TRUE(connected.get().ok()) << "who came with a wrong one has harmed nobody";
}

TEST_F(DataPlaneTest, TokensAreMadeForEachRank) {
  HostAgent agent;
  EXPECT_NE(agent.backend().NewRankToken(token_), agent.backend().NewRankToken(token_));
  EXPECT_NE(agent.backend().NewRankToken(token_), token_);
}

TEST_F(DataPlaneTest, TheSourceSeesWhoHasNotComeAndWhoBrokeOff) {
  HostAgent agent;
  const auto source = Source(agent, 3);
  auto connected = ConnectAside(*source);
  auto one = std::make_unique<RawSink>(agent.root_address(), token_, 1);
  while (!(*source->peers())[0].connected) {
  }
  EXPECT_FALSE((*source->peers())[1].connected);
  RawSink two(agent.root_address(), token_, 2);
  ASSERT_TRUE(connected.get().ok());
  std::vector<std::byte> sent(size_t{64} << 20, std::byte{7});  // more than a connection takes without being read
  const CompletionPtr done = source->Broadcast(sent.data(), static_cast<int64_t>(sent.size()), nullptr);
  one->Cancel();
  EXPECT_FALSE(done->Wait(HangDeadline()).ok());
  EXPECT_TRUE((*source->peers())[0].broke_off);
  EXPECT_FALSE((*source->peers())[1].broke_off) << "its stream was ended by the source";
}

TEST_F(DataPlaneTest, ASinkThatNeverReadsHoldsUpNobodyElse) {
  HostAgent agent;
  const auto source = Source(agent, 3);
  auto connected = ConnectAside(*source);
  RawSink deaf(agent.root_address(), token_, 1);
  auto sink =
      *agent.backend().NewTransport({.token = token_, .rank = 2, .world = 3, .root_address = agent.root_address()});
  ASSERT_TRUE(sink->Connect(HangDeadline()).ok());
  ASSERT_TRUE(connected.get().ok());
  std::vector<std::byte> sent(size_t{64} << 20, std::byte{7}), received(sent.size());
  const auto bytes = static_cast<int64_t>(sent.size());
  const CompletionPtr done = source->Broadcast(sent.data(), bytes, nullptr);
  EXPECT_TRUE(sink->Broadcast(received.data(), bytes, nullptr)->Wait(HangDeadline()).ok());
  EXPECT_EQ(received, sent);
  EXPECT_FALSE(done->Poll().has_value());
  EXPECT_LT((*source->peers())[0].moved_bytes, bytes);
  source->Cancel(absl::DeadlineExceededError("enough"));
  EXPECT_EQ(done->Wait(HangDeadline()).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(DataPlaneTest, RequestsWithoutATokenOrWithAnEndlessOneAreMalformed) {
  HostAgent agent;
  for (const std::string& token : {std::string(), std::string(257, 'x'), std::string(100'000, 'x')}) {
    EXPECT_EQ(RawSink(agent.root_address(), token, 1).Finish().error_code(), grpc::INVALID_ARGUMENT);
  }
}

TEST_F(DataPlaneTest, APeerThatIsNotAuthorisedIsTurnedAwayWithTheReason) {
  HostBackendOptions options = Patient(absl::Seconds(60));
  options.authorize = [](const grpc::ServerContextBase&) { return absl::PermissionDeniedError("who are you?"); };
  HostAgent agent(options);
  const grpc::Status status = RawSink(agent.root_address(), token_, 1).Finish();
  EXPECT_EQ(status.error_code(), grpc::PERMISSION_DENIED);
  EXPECT_EQ(status.error_message(), "who are you?");
}

TEST_F(DataPlaneTest, AFloodOfUnknownSinksIsBoundedAndKeepsNobodyOut) {
  std::atomic<size_t> calls = 0;
  std::promise<void> full;
  HostBackendOptions options = Patient(absl::Seconds(60));
  options.authorize = [&](const grpc::ServerContextBase&) {
    if (++calls == kMaxParkedCalls + 1) full.set_value();
    return absl::OkStatus();
  };
  HostAgent agent(options);
  std::vector<std::unique_ptr<RawSink>> flood;
  for (size_t i = 0; i <= kMaxParkedCalls; ++i) {
    flood.push_back(std::make_unique<RawSink>(agent.root_address(), "unknown", 1));
  }
  full.get_future().wait();
  // One of them had to go, and which one is for the network to say. The rest stay until they leave.
  std::vector<std::thread> threads;
  std::atomic<int> exhausted = 0;
  for (const auto& sink : flood) {
    threads.emplace_back([&exhausted, &sink, &flood] {
      if (sink->Finish().error_code() != grpc::RESOURCE_EXHAUSTED) return;
      ++exhausted;
      for (const auto& other : flood) other->Cancel();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(exhausted, 1);
  const auto source = Source(agent, 2);
  auto connected = ConnectAside(*source);
  // The server hears of the others' leaving in its own time.
  std::unique_ptr<Transport> good;
  absl::Status status = absl::ResourceExhaustedError("not tried yet");
  for (const absl::Time end = HangDeadline(); absl::IsResourceExhausted(status) && MonotonicNow() < end;) {
    good =
        *agent.backend().NewTransport({.token = token_, .rank = 1, .world = 2, .root_address = agent.root_address()});
    status = good->Connect(HangDeadline());
  }
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(connected.get().ok());
}

// A source that sends the chunks it is given and then waits until the sink leaves.
class LyingSource final : public v1::DataPlane::Service {
 public:
  explicit LyingSource(std::vector<v1::DataChunk> chunks) : chunks_(std::move(chunks)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~LyingSource() override { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Receive(grpc::ServerContext* context, const v1::ReceiveRequest*,
                       grpc::ServerWriter<v1::DataChunk>* writer) override {
    context->AddInitialMetadata(kAdmittedKey, "1");
    writer->SendInitialMetadata();
    for (const v1::DataChunk& chunk : chunks_) writer->Write(chunk);
    while (!context->IsCancelled() && writer->Write(v1::DataChunk())) {
    }
    return grpc::Status::OK;
  }

 private:
  const std::vector<v1::DataChunk> chunks_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

v1::DataChunk Chunk(uint64_t sequence, uint64_t offset, size_t bytes) {
  v1::DataChunk chunk;
  chunk.set_sequence(sequence);
  chunk.set_offset_bytes(offset);
  chunk.set_payload(std::string(bytes, 'x'));
  return chunk;
}

TEST_F(DataPlaneTest, ASinkEndsASessionWhoseSourceSendsNonsenseAndWritesNothingBeyondItsMemory) {
  HostAgent agent;
  const std::vector<std::vector<v1::DataChunk>> lies = {
      {Chunk(0, 0, 1001)},  // more than the broadcast has
      {Chunk(0, 0, 600), Chunk(0, 600, 401)},
      {Chunk(0, 0, 600), Chunk(0, 0, 400)},  // the same place again
      {Chunk(0, 1, 10)},
      {Chunk(1, 0, 1000)},
      {Chunk(0, 0, 600), Chunk(1, 0, 100)},  // the next one before the first is whole
      {Chunk(0, 0, kMaxChunkBytes + 1)},
  };
  for (size_t i = 0; i < lies.size(); ++i) {
    LyingSource source(lies[i]);
    auto sink =
        agent.backend().NewTransport({.token = token_, .rank = 1, .world = 2, .root_address = source.address()});
    ASSERT_TRUE((*sink)->Connect(HangDeadline()).ok());
    std::vector<std::byte> memory(2000, std::byte{0xEE});
    const CompletionPtr first = (*sink)->Broadcast(memory.data(), 1000, nullptr);
    const CompletionPtr second = (*sink)->Broadcast(memory.data(), 1000, nullptr);
    const absl::Status status = first->Wait(HangDeadline());
    EXPECT_THAT(status, FailsWith(absl::StatusCode::kDataLoss, "malformed data chunk")) << "lie " << i;
    EXPECT_EQ(second->Wait(HangDeadline()), status);
    for (int64_t at = 1000; at < 2000; ++at) ASSERT_EQ(memory[at], std::byte{0xEE});
  }
}

TEST_F(DataPlaneTest, AMessageAboveTheCapIsNotEvenTakenIn) {
  HostAgent agent;
  LyingSource source({Chunk(0, 0, kMaxChunkMessageBytes + 1)});
  auto sink = agent.backend().NewTransport({.token = token_, .rank = 1, .world = 2, .root_address = source.address()});
  std::vector<std::byte> memory(4 * kMaxChunkBytes);
  absl::Status status = (*sink)->Connect(HangDeadline());  // may meet it already
  if (status.ok()) status = (*sink)->Broadcast(memory.data(), 4 * kMaxChunkBytes, nullptr)->Wait(HangDeadline());
  EXPECT_THAT(status, FailsWith(absl::StatusCode::kResourceExhausted, source.address()));
}

TEST_F(DataPlaneTest, AServerThatIsNoSourceIsNotTakenForOne) {
  HostAgent agent;
  HostAgent refusing({.threads = 1, .authorize = [](const grpc::ServerContextBase&) {
                        return absl::PermissionDeniedError("who are you?");
                      }});
  auto sink =
      agent.backend().NewTransport({.token = token_, .rank = 1, .world = 2, .root_address = refusing.root_address()});
  EXPECT_THAT((*sink)->Connect(HangDeadline()), FailsWith(absl::StatusCode::kPermissionDenied, "who are you?"));
}

}  // namespace
}  // namespace wsync::host
