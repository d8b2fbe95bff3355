// What runs out, and who misbehaves: descriptors, shared memory, connections, message sizes, a slow sink, a huge
// catalog.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/shared_model.h"
#include "client/local/shared_segment.h"
#include "client/local/trainer_client.h"
#include "server/core/clock.h"
#include "server/rpc/daemon.h"
#include "tests/faults/group_test.h"
#include "tests/faults/process_facts.h"
#include "tests/faults/proxy.h"
#include "wsync/v1/coordinator.grpc.pb.h"

namespace wsync::faults {
namespace {

using ::testing::HasSubstr;

using Resources = GroupTest;

// What a sanitizer itself cannot do without, or takes hours for; null: none of it is in this build.
const char* SanitizerWithoutDescriptors() {
#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
  return "UBSan asks a pipe whether memory can be read, and takes an agent that cannot have one for broken";
#endif
#endif
  return nullptr;
}

const char* SanitizerWithoutMaps() {
#ifdef __SANITIZE_THREAD__
  return "TSan reads /proc/self/maps when a thread begins, and ends a process that cannot";
#endif
  return SanitizerWithoutDescriptors();
}

const char* SanitizerWithSoMany() {
#ifdef __SANITIZE_THREAD__
  return "TSan compares each report about gRPC with every suppression, and there is one for every message";
#endif
  return nullptr;
}

TEST_F(Resources, AnAgentWithoutDescriptorsFailsAVersionAndTakesTheNext) {
  if (const char* why = SanitizerWithoutDescriptors()) GTEST_SKIP() << why;
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  const pid_t pid = group_->agents().rollout_pid(1);
  rlimit before{};
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, nullptr, &before), 0);
  // A new session needs a connection; the one that is kept is taken away by a restart of the other rollout.
  const rlimit none{3, before.rlim_max};
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &none, nullptr), 0);
  group_->agents().KillRollout(0);
  ASSERT_TRUE(group_->agents().StartRollout(0).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  const auto published = group_->Publish(++version_, Scaled(2 * kHardLimit));
  ASSERT_TRUE(published.has_value());
  // Three attempts of 5 s each, and a lost version: that was found here.
  EXPECT_LT(published->took, Scaled(kHardLimit));
  EXPECT_TRUE(published->ok()) << published->message;
  EXPECT_THAT(published->message, HasSubstr("rollout-1"));
  std::printf("RESOURCE|no descriptors|%s|%.2f\n", published->ok() ? "committed" : "failed",
              absl::ToDoubleSeconds(published->took));
  EXPECT_TRUE(group_->CheckContent(0, {0, version_ - 1, version_}, false).ok());
  EXPECT_TRUE(group_->CheckContent(1, {version_ - 1, version_}, false).ok());
  ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &before, nullptr), 0);
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

// gRPC gives a listener up for good when it cannot accept: nobody could ever join or attach again.
TEST_F(Resources, AnAgentThatCouldNotAcceptForWantOfDescriptorsExitsForItsSupervisor) {
  if (const char* why = SanitizerWithoutMaps()) GTEST_SKIP() << why;
  ASSERT_EQ(setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/1), 0);  // it is noticed by what gRPC says of it
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  unsetenv("GRPC_VERBOSITY");
  const pid_t trainer = group_->agents().trainer_pid();
  const pid_t rollout = group_->agents().rollout_pid(1);
  for (const pid_t pid : {trainer, rollout}) {
    const rlimit none{3, 3};
    ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &none, nullptr), 0);
  }
  const absl::Time begun = MonotonicNow();
  (void)group_->agents().Status();                 // a new connection to the trainer agent
  ASSERT_TRUE(group_->StartEngine(1).ok());        // and one to the rollout agent
  EXPECT_EQ(AwaitExit(trainer), kExitForRestart);  // both said why, on descriptors that they had
  EXPECT_EQ(AwaitExit(rollout), kExitForRestart);
  std::printf("RESOURCE|no descriptor to accept with|both ended|%.2f\n", absl::ToDoubleSeconds(MonotonicNow() - begun));
  ASSERT_TRUE(group_->agents().RestartTrainer().ok());
  group_->agents().KillRollout(1);
  ASSERT_TRUE(group_->agents().StartRollout(1).ok());
  ASSERT_NO_FATAL_FAILURE(AwaitReady());
  Commit();
}

TEST_F(Resources, ASinkTenTimesSlowerThanTheOthersCostsTimeAndNothingElse) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 2}));
  const pid_t slow = group_->agents().rollout_pid(1);
  std::atomic<bool> done{false};
  std::thread brake([&] {  // runs a tenth of the time
    while (!done) {
      kill(slow, SIGSTOP);
      usleep(90'000);
      kill(slow, SIGCONT);
      usleep(10'000);
    }
  });
  for (int i = 0; i < 3; ++i) {
    const auto published = group_->Publish(++version_, Scaled(kHardLimit));
    EXPECT_TRUE(published.has_value() && published->ok());
    if (!published.has_value()) break;
    std::printf("RESOURCE|slow sink|committed|%.2f\n", absl::ToDoubleSeconds(published->took));
    EXPECT_TRUE(group_->CheckContent(0, {version_}, false).ok());
  }
  done = true;
  brake.join();
  kill(slow, SIGCONT);
  EXPECT_TRUE(group_->AwaitVersion(1, version_, Scaled(absl::Seconds(10))).ok());
}

TEST_F(Resources, TenThousandIdleConnectionsHoldUpNobody) {
  if (const char* why = SanitizerWithSoMany()) GTEST_SKIP() << why;
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 1}));
  const int64_t wanted = FromEnvironment("WSYNC_FAULT_CONNECTIONS", 10'000);
  const rlimit many{static_cast<rlim_t>(wanted) + 1000, static_cast<rlim_t>(wanted) + 1000};
  if (setrlimit(RLIMIT_NOFILE, &many) != 0 ||
      prlimit(group_->agents().trainer_pid(), RLIMIT_NOFILE, &many, nullptr) != 0) {
    GTEST_SKIP() << "the descriptor limit cannot be raised to " << wanted;
  }
  std::vector<int> idle;
  int refused = 0;
  while (static_cast<int64_t>(idle.size()) < wanted) {
    const int fd = ConnectTcp(group_->agents().coordinator());
    if (fd >= 0) idle.push_back(fd);
    if (fd < 0 && ++refused > 50) break;
  }
  EXPECT_GT(static_cast<int64_t>(idle.size()), wanted * 9 / 10);
  const absl::Time begun = MonotonicNow();
  Commit();
  EXPECT_LT(MonotonicNow() - begun, Scaled(kHardLimit));
  const ProcessFacts facts = FactsOf(group_->agents().trainer_pid());
  std::printf("RESOURCE|%zu idle connections|committed|%.2f, %lld MB\n", idle.size(),
              absl::ToDoubleSeconds(MonotonicNow() - begun), static_cast<long long>(facts.resident_bytes >> 20));
  for (const int fd : idle) close(fd);
  Commit();
}

// ---- messages

grpc::ByteBuffer Bytes(const std::string& text) {
  const grpc::Slice slice(text);
  return grpc::ByteBuffer(&slice, 1);
}

// Sends one message to a streaming method and returns what the call ended with.
grpc::Status SendRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                     const std::string& message) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  next();
  call->Write(Bytes(message), nullptr);
  next();
  grpc::ByteBuffer reply;
  bool more = true;
  while (more) {
    call->Read(&reply, nullptr);
    more = next();
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  queue.Shutdown();
  while (next()) {
  }
  return status;
}

TEST_F(Resources, MalformedAndOversizedMessagesEndTheirOwnCallOnly) {
  ASSERT_NO_FATAL_FAILURE(StartGroup({.rollouts = 1}));
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  const auto tcp =
      grpc::CreateCustomChannel(group_->agents().coordinator(), grpc::InsecureChannelCredentials(), arguments);
  const auto trainer =
      grpc::CreateCustomChannel(group_->agents().trainer_socket(), grpc::InsecureChannelCredentials(), arguments);
  const auto rollout =
      grpc::CreateCustomChannel(group_->agents().rollout_socket(0), grpc::InsecureChannelCredentials(), arguments);
  const std::vector<std::pair<std::shared_ptr<grpc::Channel>, std::string>> methods = {
      {tcp, "/wsync.v1.Coordinator/Member"},      {tcp, "/wsync.v1.Coordinator/GetStatus"},
      {tcp, "/wsync.v1.Coordinator/WatchStatus"}, {tcp, "/wsync.v1.Coordinator/Verify"},
      {tcp, "/wsync.v1.DataPlane/Receive"},       {trainer, "/wsync.v1.Trainer/Register"},
      {trainer, "/wsync.v1.Trainer/Publish"},     {rollout, "/wsync.v1.Rollout/Attach"},
      {rollout, "/wsync.v1.Rollout/Updates"},     {tcp, "/wsync.v1.Coordinator/NoSuchMethod"}};
  std::mt19937_64 random(9);
  int calls = 0;
  for (const auto& [channel, method] : methods) {
    for (int i = 0; i < 12; ++i) {
      std::string garbage(1 + random() % 300, '\0');
      for (char& c : garbage) c = static_cast<char>(random());
      if (i == 0) garbage = std::string("\x0a\xff\xff\xff\xff\x0f", 6);  // a length of 4 GiB
      if (i == 1) garbage = std::string(5 << 20, '\x0a');                // above the cap of a message
      const grpc::Status status = SendRaw(channel, method, garbage);
      EXPECT_FALSE(status.ok() && method.find("Status") == std::string::npos &&
                   method.find("Verify") == std::string::npos)
          << method << " took garbage";
      EXPECT_NE(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << method << " never answered";
      ++calls;
    }
  }
  std::printf("RESOURCE|%d malformed calls|refused|0\n", calls);
  Commit();
}

// ---- memory

// In a process with a mount namespace of its own, where /dev/shm is small, as in a container that nobody told better.
TEST(SharedMemory, MoreThanThereIsIsAnErrorThatSaysSoAndASmallDevShmIsNone) {
  const pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m") != 0) {
      _exit(77);
    }
    const auto fits = SharedSegment::Create(4 << 20, "four times of it");
    const auto full = SharedSegment::Create(int64_t{1} << 50, "more than any machine has");
    const bool right = fits.ok() && absl::IsResourceExhausted(full.status()) &&
                       full.status().message().find("are available") != std::string::npos;
    std::fprintf(stderr, "%s\n", full.status().ToString().c_str());
    _exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no mount namespace can be made here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// ---- size

TEST_F(Resources, AHugeCatalogIsRegisteredPlannedAndMoved) {
  if (const char* why = SanitizerWithSoMany()) GTEST_SKIP() << why;
  const int64_t count = FromEnvironment("WSYNC_FAULT_TENSORS", 100'000);
  auto agents = cli::LocalCluster::Start({.rollouts = 1});
  ASSERT_TRUE(agents.ok()) << agents.status();
  std::vector<Tensor> tensors;
  for (int64_t i = 0; i < count; ++i) tensors.push_back({absl::StrCat("layers.", i, ".bias"), Dtype::kBF16, {4}});
  auto model = cli::SharedModel::Create(tensors, "many tensors");
  ASSERT_TRUE(model.ok()) << model.status();
  auto client = TrainerClient::Connect((*agents)->trainer_socket(), absl::Seconds(20));
  ASSERT_TRUE(client.ok());
  const absl::Time begun = MonotonicNow();
  const auto registered = model->Register(**client, {}, false);
  ASSERT_TRUE(registered.ok()) << registered.status();
  EXPECT_EQ(registered->tensors(), count);
  const absl::Time planned = MonotonicNow();
  auto engine = ChildProcess::Start({"fault_client", "engine", (*agents)->rollout_socket(0), "engine"});
  ASSERT_TRUE(engine.ok());
  (*engine)->Tell("attach");
  ASSERT_TRUE((*engine)->Await("attached", Scaled(absl::Seconds(300))).has_value());
  ASSERT_TRUE((*agents)
                  ->WaitFor(
                      [](const v1::JobStatus& s) {
                        return std::any_of(s.members().begin(), s.members().end(),
                                           [](const auto& m) { return m.role() == "rollout" && m.state() == "ready"; });
                      },
                      Scaled(absl::Seconds(60)), "ready")
                  .ok());
  const absl::Time ready = MonotonicNow();
  const auto report = (*client)->Publish(1, PublishObserver());
  ASSERT_TRUE(report.ok()) << report.status();
  std::printf("RESOURCE|%lld tensors|registered %.1f s, attached %.1f s, published %.1f s|0\n",
              static_cast<long long>(count), absl::ToDoubleSeconds(planned - begun),
              absl::ToDoubleSeconds(ready - planned), absl::ToDoubleSeconds(MonotonicNow() - ready));
}

}  // namespace
}  // namespace wsync::faults
