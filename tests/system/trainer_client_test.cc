// What the C++ client makes of a publish whose agent restarted, or stood still: an agent that says what the test says.
#include "client/local/trainer_client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/sync.h"
#include "server/rpc/server.h"
#include "tests/rpc/temp_dir.h"
#include "wsync/v1/trainer.grpc.pb.h"

namespace wsync {
namespace {

using ::testing::ElementsAre;

class ScriptedAgent final : public v1::Trainer::Service {
 public:
  // One publish after the other is answered so; once there is nothing more it is committed.
  using Answer = std::function<grpc::Status(const std::string& registration)>;
  void Say(Answer answer) {
    MutexLock lock(&mu_);
    answers_.push_back(std::move(answer));
  }
  std::vector<std::string> published() const {  // by which registration
    MutexLock lock(&mu_);
    return published_;
  }

  grpc::Status Register(grpc::ServerContext*, grpc::ServerReader<v1::RegisterRequest>* reader,
                        v1::RegisterReply* reply) override {
    for (v1::RegisterRequest request; reader->Read(&request);) {
    }
    MutexLock lock(&mu_);
    reply->set_registration_id(absl::StrCat("r", ++registrations_));
    return grpc::Status::OK;
  }
  grpc::Status Publish(grpc::ServerContext*, const v1::PublishRequest* request,
                       grpc::ServerWriter<v1::PublishEvent>* writer) override {
    Answer answer;
    {
      MutexLock lock(&mu_);
      published_.push_back(request->registration_id());
      if (!answers_.empty()) {
        answer = std::move(answers_.front());
        answers_.pop_front();
      }
    }
    if (answer) return answer(request->registration_id());
    v1::PublishEvent event;
    event.mutable_committed()->set_version(request->version());
    writer->Write(event);
    return grpc::Status::OK;
  }

 private:
  mutable Mutex mu_;
  std::deque<Answer> answers_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> published_ ABSL_GUARDED_BY(mu_);
  int registrations_ ABSL_GUARDED_BY(mu_) = 0;
};

grpc::Status Forgot(const std::string& registration) {
  return {grpc::StatusCode::FAILED_PRECONDITION,
          absl::StrCat("'", registration, "' is not the current registration: register again")};
}

grpc::Status StoodStill(const std::string&) {
  return {grpc::StatusCode::ABORTED, "version 1 failed: the trainer agent stood still for 2.10 s before ..."};
}

class TrainerClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string address = absl::StrCat("unix://", dir_.Path("t.sock"));
    auto server = RpcServer::Start({.address = address, .services = {&agent_}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->SetServing(true);
    auto client = TrainerClient::Connect(address, absl::Seconds(10));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    ASSERT_TRUE(client_->Register({}, {}, {}, false).ok());
  }
  void TearDown() override {
    client_.reset();
    server_.reset();
  }

  TempDir dir_;
  ScriptedAgent agent_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<TrainerClient> client_;
};

TEST_F(TrainerClientTest, APublishThatAStandstillCalledOffIsMadeAgainOnceAlsoAfterARestart) {
  agent_.Say(Forgot);
  agent_.Say(StoodStill);
  EXPECT_TRUE(client_->Publish(1, {}).ok());
  EXPECT_THAT(agent_.published(), ElementsAre("r1", "r2", "r2"));
  agent_.Say(StoodStill);
  agent_.Say(StoodStill);
  EXPECT_TRUE(absl::IsAborted(client_->Publish(2, {}).status())) << "once";
}

// The client registers again on a thread of its own as well, which may be sooner.
TEST_F(TrainerClientTest, APublishThatARegistrationOvertookIsMadeAgainWithTheNewOne) {
  agent_.Say([this](const std::string& registration) {
    EXPECT_TRUE(client_->Register({}, {}, {}, true).ok());
    return Forgot(registration);
  });
  EXPECT_TRUE(client_->Publish(1, {}).ok());
  const std::vector<std::string> published = agent_.published();
  ASSERT_EQ(published.size(), 2u);
  EXPECT_EQ(published[0], "r1");
  EXPECT_NE(published[1], "r1");
}

}  // namespace
}  // namespace wsync
