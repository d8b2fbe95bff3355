#include "server/rpc/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "absl/time/clock.h"
#include "server/rpc/convert.h"
#include "server/rpc/grpc_log.h"
#include "server/rpc/log.h"
#include "server/rpc/server.h"
#include "server/rpc/tls_files.h"
#include "tests/rpc/rpc_testing.h"
#include "tests/rpc/temp_dir.h"

namespace wsync {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// GetStatus for peers that are allowed.
class GuardedService final : public v1::Coordinator::Service {
 public:
  explicit GuardedService(const v1::TlsConfig& tls) : tls_(tls) {}
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest*, v1::JobStatus* reply) override {
    reply->set_job("guarded");
    return ToGrpc(AuthorizePeer(tls_, *context));
  }

 private:
  const v1::TlsConfig tls_;
};

class TlsTest : public testing::Test {
 protected:
  static bool Run(const std::string& command) { return system((command + " >/dev/null 2>&1").c_str()) == 0; }

  void SetUp() override {
    if (!Run("openssl version")) GTEST_SKIP() << "the openssl command is not installed: certificates cannot be made";
    MakeAuthority("ca");
    MakeAgent("ca", "trainer", "IP:127.0.0.1,DNS:localhost,URI:spiffe://cluster/trainer");
    MakeAgent("ca", "rollout", "DNS:rollout-0,URI:spiffe://cluster/rollout");
  }

  void MakeAuthority(const std::string& name) {
    ASSERT_TRUE(Run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=" + name +
                    " -keyout " + dir_.Path(name + ".key") + " -out " + dir_.Path(name + ".pem")));
  }
  void MakeAgent(const std::string& authority, const std::string& name, const std::string& alternative_names) {
    const std::string extensions = dir_.Write(name + ".ext", "subjectAltName=" + alternative_names + "\n");
    ASSERT_TRUE(Run("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + name + " -keyout " +
                    dir_.Path(name + ".key") + " -out " + dir_.Path(name + ".csr")));
    ASSERT_TRUE(Run("openssl x509 -req -days 2 -CAcreateserial -CA " + dir_.Path(authority + ".pem") + " -CAkey " +
                    dir_.Path(authority + ".key") + " -extfile " + extensions + " -in " + dir_.Path(name + ".csr") +
                    " -out " + dir_.Path(name + ".pem")));
  }
  v1::TlsConfig Config(const std::string& authority, const std::string& name) const {
    v1::TlsConfig tls;
    tls.set_ca_file(dir_.Path(authority + ".pem"));
    tls.set_cert_file(dir_.Path(name + ".pem"));
    tls.set_key_file(dir_.Path(name + ".key"));
    return tls;
  }
  // One call from `client` to a trainer that allows `allowed`.
  grpc::Status Call(const v1::TlsConfig& client, const std::string& allowed) {
    v1::TlsConfig server_tls = Config("ca", "trainer");
    if (!allowed.empty()) server_tls.add_allowed_peers(allowed);
    GuardedService service(server_tls);
    const auto credentials = ServerCredentialsFor(server_tls);
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    const auto server =
        RpcServer::Start({.address = "127.0.0.1:0", .credentials = *credentials, .services = {&service}});
    EXPECT_TRUE(server.ok()) << server.status();
    const auto channel_credentials = ChannelCredentialsFor(client);
    EXPECT_TRUE(channel_credentials.ok()) << channel_credentials.status();
    grpc::ClientContext context;  // fails fast: a refused handshake must not be waited out
    context.set_deadline(InSeconds(10));
    v1::JobStatus reply;
    const auto channel = NewChannel((*server)->address(), *channel_credentials);
    return v1::Coordinator::NewStub(channel)->GetStatus(&context, v1::GetStatusRequest(), &reply);
  }

  // Returns when the server has hung up on it.
  static void SendGarbage(uint16_t port) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    const std::string garbage(200, 'x');
    ASSERT_EQ(send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL), static_cast<ssize_t>(garbage.size()));
    char answer[512];
    while (recv(fd, answer, sizeof(answer), 0) > 0) continue;
    close(fd);
  }

  TempDir dir_;
};

TEST_F(TlsTest, PeersOfTheSameAuthorityTalk) {
  const grpc::Status status = Call(Config("ca", "rollout"), "");
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(TlsTest, AllowedPeersMatchUriAndDnsNames) {
  EXPECT_TRUE(Call(Config("ca", "rollout"), "spiffe://cluster/rollout").ok());
  EXPECT_TRUE(Call(Config("ca", "rollout"), "rollout-0").ok());
}

TEST_F(TlsTest, OtherPeersAreRefusedWithTheIdentitiesTheyHave) {
  const grpc::Status status = Call(Config("ca", "rollout"), "spiffe://cluster/other");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(status.error_message(), HasSubstr("it has: rollout-0, spiffe://cluster/rollout; add one of them"));
}

TEST_F(TlsTest, ACommonNameIsNoIdentity) {
  EXPECT_EQ(Call(Config("ca", "rollout"), "rollout").error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(TlsTest, PeersWithoutACertificateOrOfAnotherAuthorityDoNotConnect) {
  EXPECT_EQ(Call(v1::TlsConfig(), "").error_code(), grpc::StatusCode::UNAVAILABLE);
  MakeAuthority("other");
  MakeAgent("other", "stranger", "DNS:rollout-0");
  v1::TlsConfig stranger = Config("ca", "stranger");  // believes in the trainer, but is not believed
  stranger.set_ca_file(dir_.Write("both.pem", dir_.Read("ca.pem") + dir_.Read("other.pem")));
  EXPECT_EQ(Call(stranger, "").error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, FilesThatAreMissingOrMixedUpAreNamed) {
  v1::TlsConfig tls = Config("ca", "trainer");
  tls.clear_key_file();
  EXPECT_EQ(ServerCredentialsFor(tls).status().message(),
            "tls.key_file is not set; TLS needs tls.ca_file, tls.cert_file and tls.key_file: set all three, or none");
  tls.set_key_file(dir_.Path("none"));
  EXPECT_EQ(ServerCredentialsFor(tls).status().message(),
            "cannot read tls.key_file " + dir_.Path("none") + ": no such file or directory");
  tls.set_key_file(dir_.Path("trainer.pem"));
  EXPECT_EQ(ChannelCredentialsFor(tls).status().message(), "tls.key_file " + dir_.Path("trainer.pem") +
                                                               " holds no PEM block with \"PRIVATE KEY\"; is it the "
                                                               "right file?");
}

// What gRPC says nothing of, or "Socket closed" at the other end.
TEST_F(TlsTest, AKeyOfAnotherCertificateIsNamed) {
  v1::TlsConfig tls = Config("ca", "trainer");
  tls.set_key_file(dir_.Path("rollout.key"));
  const std::string expected = "tls.key_file " + dir_.Path("rollout.key") + " is not the key of tls.cert_file " +
                               dir_.Path("trainer.pem") + "; give the two that were issued together";
  EXPECT_EQ(ServerCredentialsFor(tls).status().message(), expected);
  EXPECT_EQ(ChannelCredentialsFor(tls).status().message(), expected);
}

TEST_F(TlsTest, DamagedAndEncryptedFilesAreNamed) {
  const std::string block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
  v1::TlsConfig tls = Config("ca", "trainer");
  tls.set_ca_file(dir_.Write("second-is-damaged.pem", dir_.Read("ca.pem") + block));
  EXPECT_THAT(std::string(ServerCredentialsFor(tls).status().message()),
              AllOf(HasSubstr("second-is-damaged.pem: certificate 2"), HasSubstr("copy it again")));
  tls = Config("ca", "trainer");
  tls.set_cert_file(dir_.Write("junk.pem", "BEGIN CERTIFICATE"));
  EXPECT_THAT(std::string(ServerCredentialsFor(tls).status().message()), HasSubstr("junk.pem: certificate 1"));
  tls = Config("ca", "trainer");
  tls.set_key_file(dir_.Write("junk.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"));
  EXPECT_THAT(std::string(ServerCredentialsFor(tls).status().message()),
              HasSubstr("junk.key: the key in it is damaged"));
  ASSERT_TRUE(Run("openssl pkey -aes128 -passout pass:secret -in " + dir_.Path("trainer.key") + " -out " +
                  dir_.Path("locked.key")));
  tls.set_key_file(dir_.Path("locked.key"));
  EXPECT_THAT(std::string(ServerCredentialsFor(tls).status().message()),
              AllOf(HasSubstr("locked.key is encrypted"), HasSubstr("openssl pkey")));
  tls.set_key_file(dir_.path());
  EXPECT_THAT(std::string(ServerCredentialsFor(tls).status().message()),
              AllOf(HasSubstr("cannot read tls.key_file"), HasSubstr("directory")));
}

TEST_F(TlsTest, ACertificateOutsideOfItsTimeIsNamedWithThatTime) {
  const v1::TlsConfig tls = Config("ca", "trainer");  // both are good for two days from now
  EXPECT_TRUE(LoadTlsFiles(tls, absl::Now()).ok());
  EXPECT_THAT(std::string(LoadTlsFiles(tls, absl::Now() + absl::Hours(49)).status().message()),
              AllOf(HasSubstr("tls.cert_file " + dir_.Path("trainer.pem")), HasSubstr("/CN=trainer expired on 20"),
                    HasSubstr(" UTC, "), HasSubstr("issue a new one")));
  EXPECT_THAT(std::string(LoadTlsFiles(tls, absl::Now() - absl::Hours(1)).status().message()),
              AllOf(HasSubstr("is not valid before 20"), HasSubstr("clock")));
}

TEST_F(TlsTest, AnAuthorityThatExpiredFirstIsNamedAsWell) {
  ASSERT_TRUE(Run("openssl x509 -req -days 9 -CAcreateserial -CA " + dir_.Path("ca.pem") + " -CAkey " +
                  dir_.Path("ca.key") + " -in " + dir_.Path("trainer.csr") + " -out " + dir_.Path("trainer.pem")));
  EXPECT_THAT(std::string(LoadTlsFiles(Config("ca", "trainer"), absl::Now() + absl::Hours(49)).status().message()),
              AllOf(HasSubstr("tls.ca_file " + dir_.Path("ca.pem")), HasSubstr("/CN=ca expired on 20")));
}

TEST_F(TlsTest, ACertificateOfAnotherAuthorityIsNamedWithBoth) {
  MakeAuthority("other");
  EXPECT_THAT(
      std::string(ServerCredentialsFor(Config("other", "trainer")).status().message()),
      AllOf(HasSubstr("of /CN=trainer was issued by /CN=ca"),
            HasSubstr("no authority of tls.ca_file " + dir_.Path("other.pem")), HasSubstr("a file may hold several")));
}

// A port scan, or a peer that has no TLS and tries again at once: each try was a line.
TEST_F(TlsTest, GarbageAtATlsPortDoesNotFloodTheLog) {
  TakeGrpcLog();
  ASSERT_TRUE(InitLog({.component = "trainer", .file = dir_.Path("log")}).ok());
  StatusService service("guarded");
  const auto server = RpcServer::Start({.address = "127.0.0.1:0",
                                        .credentials = *ServerCredentialsFor(Config("ca", "trainer")),
                                        .services = {&service}});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string port = (*server)->address().substr((*server)->address().rfind(':') + 1);
  constexpr int kTries = 1000;
  for (int i = 0; i < kTries; ++i) SendGarbage(static_cast<uint16_t>(std::stoi(port)));
  const std::string log = dir_.Read("log");
  ASSERT_TRUE(InitLog({}).ok());
  const auto lines = std::count(log.begin(), log.end(), '\n');
  EXPECT_GT(lines, 0) << "what happens is told";
  EXPECT_LE(lines, kTries / 2) << log.substr(log.size() - 300);
}

TEST_F(TlsTest, WithoutTlsEverybodyIsAllowed) {
  EXPECT_TRUE(ServerCredentialsFor(v1::TlsConfig()).ok());
  EXPECT_TRUE(ChannelCredentialsFor(v1::TlsConfig()).ok());
  EXPECT_TRUE(AuthorizePeer(v1::TlsConfig(), grpc::ServerContext()).ok());
}

}  // namespace
}  // namespace wsync
