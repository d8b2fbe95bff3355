// A scripted sink: speaks the coordinator's protocol by hand, and keeps everything it was told.
// Send from the test's thread; a thread of its own reads.
#ifndef WSYNC_TESTS_TRAINER_TEST_MEMBER_H_
#define WSYNC_TESTS_TRAINER_TEST_MEMBER_H_

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "server/core/sync.h"
#include "wsync/v1/coordinator.grpc.pb.h"

namespace wsync {

class TestMember {
 public:
  using Case = v1::CoordinatorMessage::MessageCase;

  explicit TestMember(const std::string& coordinator);
  ~TestMember();  // hangs up

  static v1::Join JoinOf(const std::string& name);  // a valid one, replica = name

  bool Send(const v1::MemberMessage& message);
  void Join(const std::string& name);
  void Ready(const v1::Hash& plan_hash);
  void Heartbeat();
  void Staged(const v1::Begin& begin, const v1::Hash& digest);
  void Applied(const v1::Begin& begin, const v1::Hash& digest);
  void Failed(const v1::Begin& begin, const std::string& error);
  void Leave();
  void WritesDone() { stream_->WritesDone(); }
  void HangUp();

  // Joins, takes the catalog and says it is ready for it. Returns the catalog.
  v1::CatalogChunk JoinAndGetReady(const std::string& name);

  // The n-th message of this kind; fails the test when it does not come.
  v1::CoordinatorMessage Await(Case kind, size_t n = 0);
  v1::CatalogChunk AwaitCatalog(size_t n = 0);  // the n-th whole one
  size_t Count(Case kind);
  size_t sent() const { return sent_; }
  grpc::Status AwaitEnd();

 private:
  void Read();

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Coordinator::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::MemberMessage, v1::CoordinatorMessage>> stream_;
  size_t sent_ = 0;
  Mutex mu_;
  CondVar changed_;
  std::vector<v1::CoordinatorMessage> received_ ABSL_GUARDED_BY(mu_);
  std::optional<grpc::Status> ended_ ABSL_GUARDED_BY(mu_);
  std::thread reader_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_TRAINER_TEST_MEMBER_H_
