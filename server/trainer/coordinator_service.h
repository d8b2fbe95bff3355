// The Coordinator service: turns members' messages into events and the coordinator's actions into messages.
//
// gRPC callbacks only hand things to the control thread; all state here is that thread's.
#ifndef WSYNC_SERVER_TRAINER_COORDINATOR_SERVICE_H_
#define WSYNC_SERVER_TRAINER_COORDINATOR_SERVICE_H_

#include <grpcpp/server_context.h>

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/trainer/catalog_chunks.h"
#include "server/trainer/control_loop.h"
#include "server/trainer/member_connection.h"
#include "server/trainer/member_messages.h"
#include "server/trainer/verification.h"
#include "server/trainer/watch_stream.h"
#include "wsync/v1/coordinator.grpc.pb.h"

namespace wsync {

class CoordinatorService final
    : public v1::Coordinator::WithRawCallbackMethod_Member<v1::Coordinator::WithCallbackMethod_GetStatus<
          v1::Coordinator::WithCallbackMethod_WatchStatus<v1::Coordinator::WithCallbackMethod_Verify<
              v1::Coordinator::WithCallbackMethod_Unfence<v1::Coordinator::Service>>>>> {
 public:
  struct Options {
    JoinRules join;
    std::string data_address;  // where sinks reach the data plane; empty: the address they dialled
    absl::Duration heartbeat;
    absl::Duration heartbeat_timeout;
    // At the head of every call; an error refuses it.
    std::function<absl::Status(const grpc::ServerContextBase&)> authorize;
    // Makes the status, on the control thread.
    std::function<v1::JobStatus()> status;
  };
  CoordinatorService(Options options, ControlLoop* loop);

  // Control thread only.
  void SetCatalog(CatalogMessages catalog) { catalog_ = std::move(catalog); }
  void Carry(const action::SendWelcome& action);
  void Carry(const action::SendCatalog& action);
  void Carry(const action::Refuse& action);
  void Carry(const action::SendBegin& action);
  void Carry(const action::SendCommit& action);
  void Carry(const action::SendAbort& action);
  void Carry(const action::Disconnect& action);
  void Carry(const action::Unfenced& action) { unfenced_ = action; }
  // Chores: tells watchers, hangs up on streams that never join, ends verifications that take too long.
  absl::Time Tell(absl::Time now);
  // Refuses everybody who is there, and who comes from now on.
  void CloseAll(const absl::Status& why);

 private:
  using Connection = std::shared_ptr<MemberConnection>;

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Member(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::JobStatus* reply) override;
  grpc::ServerWriteReactor<v1::JobStatus>* WatchStatus(grpc::CallbackServerContext* context,
                                                       const v1::WatchStatusRequest* request) override;

  grpc::ServerUnaryReactor* Verify(grpc::CallbackServerContext* context, const v1::VerifyRequest* request,
                                   v1::VerifyReply* reply) override;

  grpc::ServerUnaryReactor* Unfence(grpc::CallbackServerContext* context, const v1::UnfenceRequest* request,
                                    v1::UnfenceReply* reply) override;

  // Control thread only.
  void StartVerification(absl::Time deadline, grpc::ServerUnaryReactor* reactor, v1::VerifyReply* reply);
  absl::Time TellVerifications(absl::Time now);
  void MemberGone(MemberId member, const std::string& why);
  void Opened(const Connection& connection);
  void Received(const Connection& connection, const v1::MemberMessage& message);
  void Closed(const Connection& connection, const std::string& why);
  void Join(const Connection& connection, const v1::Join& join);
  void Refuse(const Connection& connection, const absl::Status& why, bool retry);
  void StepFor(const Connection& connection, const v1::MemberMessage& message);
  void SendTo(MemberId member, const v1::CoordinatorMessage& message);

  const Options options_;
  ControlLoop* const loop_;
  std::atomic<MemberId> next_id_ = 1;

  // Control thread only.
  CatalogMessages catalog_;
  std::map<MemberId, Connection> members_;                         // joined
  std::map<MemberId, std::pair<Connection, absl::Time>> waiting_;  // connected since; not joined yet
  std::map<MemberId, std::string> names_;                          // of members_
  std::list<std::shared_ptr<WatchStream>> watchers_;
  std::map<uint64_t, Verification> verifications_;
  uint64_t last_verification_ = 0;
  action::Unfenced unfenced_;  // the last answer of its kind
  absl::Status closed_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_COORDINATOR_SERVICE_H_
