// One Updates call of an engine: gRPC's callbacks become LocalApi calls, the controller's events become messages.
//
// EngineStream's methods: the controller's thread. The object keeps itself alive until gRPC is done with it.
#ifndef WSYNC_SERVER_ROLLOUT_UPDATES_CALL_H_
#define WSYNC_SERVER_ROLLOUT_UPDATES_CALL_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <optional>

#include "server/core/sync.h"
#include "server/rollout/local_api.h"
#include "server/rpc/call_limit.h"
#include "wsync/v1/rollout.grpc.pb.h"

namespace wsync {

v1::OutputTensor OutputToProto(const Plan& plan, const Output& output);

class UpdatesCall final : public grpc::ServerBidiReactor<v1::EngineMessage, v1::UpdateEvent>, public EngineStream {
 public:
  // Events that wait for an engine which reads none of them, before it is let go: no version has as many.
  static constexpr size_t kMaxUnread = 4096;

  static grpc::ServerBidiReactor<v1::EngineMessage, v1::UpdateEvent>* Start(LocalApi* api, CallLimit* limit);

  void Prepare(const sink::TellPrepare& event) override;
  void LayerComplete(uint64_t version, const LayerReady& layer) override;
  void WantLayer(uint64_t version, const LayerWanted& layer) override;
  void Apply(const sink::TellApply& event) override;
  void Applied(const sink::TellApplied& event) override;
  void Torn(const sink::TellTorn& event) override;
  void Cancelled(const sink::TellCancelled& event) override;
  void Heard() override;
  void Finish(const absl::Status& status) override;

 private:
  UpdatesCall(LocalApi* api, CallLimit* limit) : api_(api), place_(limit) {}
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override { self_.reset(); }

  // Not OK: nonsense, or out of turn.
  absl::Status Hear(const v1::EngineMessage& message);
  void Send(v1::UpdateEvent event);
  void GoOn();

  LocalApi* const api_;
  const CallLimit::Place place_;
  v1::EngineMessage incoming_;
  v1::UpdateEvent outgoing_;  // being written
  bool greeted_ = false;      // gRPC's read callbacks only

  Mutex mu_;
  std::deque<v1::UpdateEvent> queue_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> finish_ ABSL_GUARDED_BY(mu_);  // to end with, once the queue is out
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool unread_ ABSL_GUARDED_BY(mu_) = false;  // it has kMaxUnread, and was told on
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;

  std::shared_ptr<UpdatesCall> self_;  // until OnDone
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_UPDATES_CALL_H_
