// The local API of the training process: register, publish, unregister, and how the job is.
//
// gRPC callbacks collect and check; what takes time happens on the registrar's and the control thread, which answer.
#ifndef WSYNC_SERVER_TRAINER_TRAINER_SERVICE_H_
#define WSYNC_SERVER_TRAINER_TRAINER_SERVICE_H_

#include <grpcpp/server_context.h>

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "server/rpc/call_limit.h"
#include "server/trainer/control_loop.h"
#include "server/trainer/publish_tracker.h"
#include "server/trainer/registrar.h"
#include "wsync/v1/trainer.grpc.pb.h"

namespace wsync {

class TrainerService final : public v1::Trainer::CallbackService {
 public:
  // `status` is called on the control thread.
  TrainerService(Registrar* registrar, PublishTracker* tracker, ControlLoop* loop, const Memory* memory,
                 std::function<v1::JobStatus()> status)
      : registrar_(registrar), tracker_(tracker), loop_(loop), memory_(memory), status_(std::move(status)) {}

  // From now on new registrations and versions are refused with UNAVAILABLE.
  void Drain() { draining_ = true; }

 private:
  grpc::ServerReadReactor<v1::RegisterRequest>* Register(grpc::CallbackServerContext* context,
                                                         v1::RegisterReply* reply) override;
  grpc::ServerWriteReactor<v1::PublishEvent>* Publish(grpc::CallbackServerContext* context,
                                                      const v1::PublishRequest* request) override;
  grpc::ServerUnaryReactor* Unregister(grpc::CallbackServerContext* context, const v1::UnregisterRequest* request,
                                       v1::UnregisterReply* reply) override;
  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::JobStatus* reply) override;
  // Control thread.
  void CallOffIfForsaken(uint64_t version);
  absl::Status Admit(const v1::PublishRequest& request);
  absl::StatusOr<std::shared_ptr<StreamOrder>> OrderOf(const v1::PublishRequest& request);

  Registrar* const registrar_;
  PublishTracker* const tracker_;
  ControlLoop* const loop_;
  const Memory* const memory_;
  const std::function<v1::JobStatus()> status_;
  std::atomic<bool> draining_ = false;
  CallLimit registrations_{"Register", 64};
  CallLimit publishes_{"Publish", 1024};
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_TRAINER_SERVICE_H_
