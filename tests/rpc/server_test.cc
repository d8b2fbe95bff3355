#include "server/rpc/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <string>

#include "server/core/clock.h"
#include "server/rpc/convert.h"
#include "tests/rpc/rpc_testing.h"
#include "tests/rpc/temp_dir.h"

namespace wsync {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr char kHealthCheck[] = "/grpc.health.v1.Health/Check";
constexpr char kServing[] = "\x08\x01";     // HealthCheckResponse{status: SERVING}
constexpr char kNotServing[] = "\x08\x02";  // HealthCheckResponse{status: NOT_SERVING}

class ServerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<RpcServer>> Start(const std::string& address, const std::string& key = "") {
    return RpcServer::Start({.address = address, .services = {&service_}, .config_key = key});
  }
  std::string ErrorOf(const std::string& address, const std::string& key = "") {
    const auto server = Start(address, key);
    return server.ok() ? "" : std::string(server.status().message());
  }
  std::string Unix(const std::string& name) const { return "unix://" + dir_.Path(name); }

  TempDir dir_;
  StatusService service_{"job"};
};

// A bound socket file whose owner is gone.
void MakeStaleSocket(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  close(fd);
}

TEST_F(ServerTest, ServesOnAFreeTcpPortAndSaysWhich) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT((*server)->address(), StartsWith("127.0.0.1:"));
  EXPECT_NE((*server)->address(), "127.0.0.1:0");
  v1::JobStatus reply;
  const grpc::Status status = CallGetStatus(NewChannel((*server)->address(), nullptr), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.job(), "job");
}

TEST_F(ServerTest, ServesOnAUnixSocketThatOnlyTheOwnerCanOpenAndRemovesIt) {
  auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->address(), Unix("s"));
  struct stat info = {};
  ASSERT_EQ(stat(dir_.Path("s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  v1::JobStatus reply;
  EXPECT_TRUE(CallGetStatus(NewChannel(Unix("s"), nullptr), &reply).ok());
  server->reset();
  EXPECT_NE(stat(dir_.Path("s").c_str(), &info), 0);
}

TEST_F(ServerTest, APortInUseIsNamedWithReasonAndAdvice) {
  const auto first = Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  const std::string address = (*first)->address();
  EXPECT_EQ(
      ErrorOf(address, "coordinator.listen"),
      "cannot listen on " + address +
          ": address already in use; is another wsync agent running there? Stop it, or set coordinator.listen to a "
          "free port");
  EXPECT_THAT(ErrorOf(address), HasSubstr("or choose a free port"));
}

TEST_F(ServerTest, AddressesThatThisHostCannotBindAreNamed) {
  EXPECT_EQ(ErrorOf("192.0.2.1:7470", "coordinator.listen"),
            "cannot listen on 192.0.2.1:7470: cannot assign requested address; this host has no such address; set "
            "coordinator.listen to one of its own, or 0.0.0.0:PORT for all");
  EXPECT_THAT(
      ErrorOf("no-such-host.invalid:1", "coordinator.listen"),
      StartsWith("cannot listen on no-such-host.invalid:1: host \"no-such-host.invalid\" cannot be resolved ("));
  EXPECT_EQ(ErrorOf("nonsense"), "cannot listen: \"nonsense\" has no port; expected host:port such as 127.0.0.1:7470");
}

TEST_F(ServerTest, AStaleSocketIsReplaced) {
  MakeStaleSocket(dir_.Path("s"));
  const auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok()) << server.status();
  v1::JobStatus reply;
  EXPECT_TRUE(CallGetStatus(NewChannel(Unix("s"), nullptr), &reply).ok());
}

TEST_F(ServerTest, ASocketOnWhichSomebodyAnswersIsNeverTakenOver) {
  const auto first = Start(Unix("s"));
  ASSERT_TRUE(first.ok());
  const auto second = Start(Unix("s"), "local_socket");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(second.status().message(), "cannot listen on " + Unix("s") +
                                           ": somebody answers on it; another wsync agent is running; stop it, or set "
                                           "local_socket to another path");
  v1::JobStatus reply;
  EXPECT_TRUE(CallGetStatus(NewChannel(Unix("s"), nullptr), &reply).ok());
}

TEST_F(ServerTest, FilesThatAreNoSocketsAreLeftAlone) {
  dir_.Write("s", "precious");
  EXPECT_EQ(ErrorOf(Unix("s"), "local_socket"), "cannot listen on " + Unix("s") +
                                                    ": a file that is no socket is in the way; remove it, or set "
                                                    "local_socket to another path");
  EXPECT_EQ(dir_.Read("s"), "precious");
}

TEST_F(ServerTest, AMissingDirectoryIsNamedWithTheCommandThatMakesIt) {
  EXPECT_EQ(ErrorOf(Unix("none/s"), "local_socket"),
            "cannot listen on " + Unix("none/s") + ": directory " + dir_.Path("none") +
                ": no such file or directory; create it (mkdir -p " + dir_.Path("none") +
                "), or set local_socket to a path in a directory that exists");
}

TEST_F(ServerTest, APathTooLongForASocketIsRefusedWithTheLimit) {
  EXPECT_THAT(ErrorOf(Unix(std::string(108, 'x'))), HasSubstr("a Unix socket's path holds at most 107 bytes"));
}

TEST_F(ServerTest, ADirectoryLockedForGoodIsReported) {
  const int fd = open(dir_.path().c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(flock(fd, LOCK_EX), 0);
  EXPECT_EQ(ErrorOf(Unix("s")), "cannot listen on " + Unix("s") + ": another process holds a lock on " + dir_.path() +
                                    "; try again when it is done");
  close(fd);
}

TEST_F(ServerTest, HealthFollowsSetServing) {
  const auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok());
  const auto channel = NewChannel(Unix("s"), nullptr);
  EXPECT_EQ(CallRaw(channel, kHealthCheck, ""), kServing);
  (*server)->SetServing(false);
  EXPECT_EQ(CallRaw(channel, kHealthCheck, ""), kNotServing);
  (*server)->SetServing(true);
  EXPECT_EQ(CallRaw(channel, kHealthCheck, ""), kServing);
}

TEST_F(ServerTest, ReflectionListsTheServices) {
  const auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok());
  const std::string list_services("\x3A\x00", 2);  // ServerReflectionRequest{list_services: ""}
  const std::string reply = CallRaw(NewChannel(Unix("s"), nullptr),
                                    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", list_services);
  EXPECT_THAT(reply, HasSubstr("wsync.v1.Coordinator"));
  EXPECT_THAT(reply, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(ServerTest, MessagesAboveFourMebibytesAreRefused) {
  const auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok());
  const auto channel = NewChannel(Unix("s"), nullptr);
  const std::string method = "/wsync.v1.Coordinator/GetStatus";
  // Field 1 of any message, as bytes: unknown to GetStatusRequest, so only its size matters.
  const auto request = [](size_t bytes) {
    v1::StatusEvent event;
    event.set_text(std::string(bytes, 'x'));
    return event.SerializeAsString();
  };
  EXPECT_NE(CallRaw(channel, method, request(4'000'000)), "");
  EXPECT_EQ(CallRaw(channel, method, request(4 << 20)), "");
}

// A call that runs for as long as the service holds it.
struct HeldCall {
  explicit HeldCall(const std::string& address) : stub(v1::Coordinator::NewStub(NewChannel(address, nullptr))) {
    context.set_wait_for_ready(true);
    context.set_deadline(InSeconds(30));
    reader = stub->WatchStatus(&context, v1::WatchStatusRequest());
    v1::JobStatus first;
    arrived = reader->Read(&first);
  }
  grpc::Status End() {
    v1::JobStatus more;
    while (reader->Read(&more)) continue;
    return reader->Finish();
  }
  grpc::ClientContext context;
  std::unique_ptr<v1::Coordinator::Stub> stub;
  std::unique_ptr<grpc::ClientReader<v1::JobStatus>> reader;
  bool arrived = false;
};

TEST_F(ServerTest, ShutdownLetsRunningCallsEnd) {
  const auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok());
  HeldCall call(Unix("s"));
  ASSERT_TRUE(call.arrived);
  auto shutdown = std::async(std::launch::async, [&] { (*server)->Shutdown(absl::Seconds(20)); });
  service_.Release();
  const grpc::Status status = call.End();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(shutdown.wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST_F(ServerTest, ShutdownCancelsCallsThatOutlastTheGrace) {
  const auto server = Start(Unix("s"));
  ASSERT_TRUE(server.ok());
  HeldCall call(Unix("s"));
  ASSERT_TRUE(call.arrived);
  const absl::Time begin = MonotonicNow();
  (*server)->Shutdown(absl::Milliseconds(50));
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(5));
  EXPECT_FALSE(call.End().ok());
  (*server)->Shutdown(absl::InfiniteDuration());  // a second one has nothing to do
}

TEST_F(ServerTest, ErrorsOfAnyLengthReachClientsWithDefaultLimits) {
  class Failing final : public v1::Coordinator::Service {
    grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*, v1::JobStatus*) override {
      return ToGrpc(absl::InvalidArgumentError(std::string(20'000, '\n')));
    }
  } failing;
  const auto server = RpcServer::Start({.address = Unix("f"), .services = {&failing}});
  ASSERT_TRUE(server.ok());
  v1::JobStatus reply;
  // A channel without our arguments, as any other client has it.
  const grpc::Status status = CallGetStatus(grpc::CreateChannel(Unix("f"), grpc::InsecureChannelCredentials()), &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr(" bytes more)"));
}

}  // namespace
}  // namespace wsync
