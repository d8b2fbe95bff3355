// A trainer agent in this process, on a fake backend, and a training process that talks to it.
#ifndef WSYNC_TESTS_TRAINER_AGENT_TESTING_H_
#define WSYNC_TESTS_TRAINER_AGENT_TESTING_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/trainer/trainer_agent.h"
#include "tests/trainer/fake_backend.h"
#include "tests/trainer/test_member.h"
#include "wsync/v1/config.pb.h"
#include "wsync/v1/trainer.grpc.pb.h"

namespace wsync {

v1::TrainerConfig TestConfig();  // free port, socket in a folder of its own, short timeouts

struct PublishOutcome {
  grpc::Status status;
  std::vector<v1::PublishEvent> events;

  int Count(v1::PublishEvent::EventCase kind) const;
  const v1::VersionReport& report() const { return events.back().committed(); }
};

// A Publish call under way, read by a thread of its own.
class PublishInFlight {
 public:
  PublishInFlight(v1::Trainer::Stub* stub, const v1::PublishRequest& request);
  ~PublishInFlight();
  void AwaitEvent(v1::PublishEvent::EventCase kind);
  bool Told(v1::PublishEvent::EventCase kind);  // so far
  PublishOutcome Join();
  void HangUp() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  Mutex mu_;
  CondVar changed_;
  PublishOutcome outcome_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::thread reader_;
};

class AgentTest : public ::testing::Test {
 protected:
  void StartAgent(const v1::TrainerConfig& config = TestConfig());
  void TearDown() override;

  grpc::Status Register(int tensors, v1::RegisterReply* reply, bool replace = false,
                        const std::string& memory = "/weights", int64_t pid = getpid());
  std::string RegisterOk(int tensors, bool replace = false, const std::string& memory = "/weights");
  std::unique_ptr<PublishInFlight> Publish(const std::string& registration_id, uint64_t version);
  std::unique_ptr<PublishInFlight> Publish(const v1::PublishRequest& request) {
    return std::make_unique<PublishInFlight>(trainer_.get(), request);
  }
  PublishOutcome PublishAndWait(const std::string& registration_id, uint64_t version);
  grpc::Status Unregister(const std::string& registration_id, v1::UnregisterReply* reply);
  v1::JobStatus Status();
  // Publishes, and every member does its part in what is its round number `round`.
  PublishOutcome Sync(const std::string& registration_id, uint64_t version, const std::vector<TestMember*>& members,
                      const v1::Hash& content, size_t round = 0);
  v1::Hash ContentOf(int tensors, const std::string& memory = "/weights");  // what its digest is now
  std::unique_ptr<TestMember> NewMember() { return std::make_unique<TestMember>(agent_->coordinator_address()); }

  FakeBackend* backend_ = nullptr;
  std::unique_ptr<TrainerAgent> agent_;
  std::unique_ptr<v1::Trainer::Stub> trainer_;
  std::unique_ptr<v1::Coordinator::Stub> coordinator_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_TRAINER_AGENT_TESTING_H_
