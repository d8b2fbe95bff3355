#include "server/rpc/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <string>

#include "server/rpc/convert.h"
#include "server/rpc/server.h"
#include "tests/rpc/rpc_testing.h"
#include "tests/rpc/temp_dir.h"

namespace wsync {
namespace {

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

TEST_F(TlsTest, WithoutTlsEverybodyIsAllowed) {
  EXPECT_TRUE(ServerCredentialsFor(v1::TlsConfig()).ok());
  EXPECT_TRUE(ChannelCredentialsFor(v1::TlsConfig()).ok());
  EXPECT_TRUE(AuthorizePeer(v1::TlsConfig(), grpc::ServerContext()).ok());
}

}  // namespace
}  // namespace wsync
