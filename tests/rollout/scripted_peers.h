// The agent's two neighbours as puppets over real gRPC: a coordinator that says what the test tells it to, and an
// engine. Every wait has a deadline and fails the test instead of hanging.
#ifndef WSYNC_TESTS_ROLLOUT_SCRIPTED_PEERS_H_
#define WSYNC_TESTS_ROLLOUT_SCRIPTED_PEERS_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/core/plan.h"
#include "server/core/sync.h"
#include "server/rpc/server.h"
#include "tests/rollout/testing.h"
#include "wsync/v1/coordinator.grpc.pb.h"
#include "wsync/v1/rollout.grpc.pb.h"

namespace wsync {

class ScriptedCoordinator final : private v1::Coordinator::Service {
 public:
  explicit ScriptedCoordinator(const std::string& address);
  ~ScriptedCoordinator() override;  // breaks the members' streams

  // The next message other than heartbeats that `wanted` accepts; those before it are dropped. Empty on timeout.
  v1::MemberMessage Await(const std::function<bool(const v1::MemberMessage&)>& wanted);
  v1::Join AwaitJoin();
  v1::Ready AwaitReady(bool ready);  // the next one that is as wanted
  v1::Staged AwaitStaged();
  v1::Applied AwaitApplied();
  v1::Failed AwaitFailed();
  bool AwaitHeartbeats(int count);
  bool AwaitEnd();  // of the present stream

  void Send(const v1::CoordinatorMessage& message);
  void Welcome(int64_t heartbeat_ms = 50, int64_t heartbeat_timeout_ms = 10'000);
  void SendCatalog(const Plan& plan);
  void SendNoCatalog();
  void Begin(uint64_t epoch, uint64_t version, const Plan& plan);
  void Commit(uint64_t epoch, uint64_t version, const Hash128& digest);
  void Abort(uint64_t epoch, uint64_t version, const std::string& why);
  void AnswerHeartbeats(bool answer);

  std::vector<std::string> rounds_log() const;  // round messages and readiness, both ways, as words

 private:
  using Stream = grpc::ServerReaderWriter<v1::CoordinatorMessage, v1::MemberMessage>;
  grpc::Status Member(grpc::ServerContext* context, Stream* stream) override;

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<v1::MemberMessage> inbox_ ABSL_GUARDED_BY(mu_);
  Stream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;
  int heartbeats_ ABSL_GUARDED_BY(mu_) = 0;
  bool answer_heartbeats_ ABSL_GUARDED_BY(mu_) = true;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<RpcServer> server_;
};

class ScriptedEngine {
 public:
  explicit ScriptedEngine(const std::string& address);
  ~ScriptedEngine();  // cancels the update stream

  grpc::Status GetOutputs(absl::Duration timeout, std::vector<v1::OutputsReply>* replies);
  grpc::Status Attach(const v1::AttachRequest& request, absl::Duration timeout = kPatience);
  void OpenUpdates();
  void OpenUpdates(const std::string& attachment_id);
  // The next event; an empty one when the stream has ended: then see `end`.
  v1::UpdateEvent Next();
  void Paused(uint64_t version);
  // As Paused, ordered by the event of this handle.
  void PausedOnStream(uint64_t version, const std::string& after, const std::string& uuid);
  grpc::Status End();  // waits for the end of the stream
  grpc::Status Detach();
  const v1::AttachReply& attached() const { return attached_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Rollout::Stub> stub_;
  v1::AttachReply attached_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::EngineMessage, v1::UpdateEvent>> updates_;
};

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_SCRIPTED_PEERS_H_
