#include "server/trainer/trainer_service.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/trainer/publish_call.h"
#include "server/trainer/register_call.h"

namespace wsync {
namespace {

absl::Status ShuttingDown() {
  return absl::UnavailableError("the trainer agent is shutting down: try again once it is back");
}

}  // namespace

grpc::ServerReadReactor<v1::RegisterRequest>* TrainerService::Register(grpc::CallbackServerContext* context,
                                                                       v1::RegisterReply* reply) {
  return new RegisterCall(context, reply, registrar_, &registrations_);
}

grpc::ServerWriteReactor<v1::PublishEvent>* TrainerService::Publish(grpc::CallbackServerContext*,
                                                                    const v1::PublishRequest* request) {
  auto call = PublishCall::Open(
      [this, version = request->version()] { loop_->Run([this, version] { CallOffIfForsaken(version); }); },
      &publishes_);
  if (!call->taken().ok()) {
    call->Fail(call->taken());
    return call.get();
  }
  const bool queued = loop_->Run([this, call, request = *request] {
    if (call->HungUp()) return;
    if (absl::Status status = Admit(request); !status.ok()) return call->Fail(status);
    auto order = OrderOf(request);
    if (!order.ok()) return call->Fail(order.status());
    CallOffIfForsaken(request.version());  // who publishes again after hanging up must not join what was read before
    if (tracker_->Watch(request.version(), call, *order)) loop_->Step(event::Publish{request.version()});
  });
  if (!queued) call->Fail(ShuttingDown());
  return call.get();
}

void TrainerService::CallOffIfForsaken(uint64_t version) {
  if (tracker_->Forsaken(version)) loop_->Step(event::CallersGone{version});
}

absl::Status TrainerService::Admit(const v1::PublishRequest& request) {
  if (draining_) return ShuttingDown();
  if (request.version() == 0) {
    return absl::InvalidArgumentError("a version is a number above 0 that grows with every publish; got 0");
  }
  return registrar_->Check(request.registration_id());
}

absl::StatusOr<std::shared_ptr<StreamOrder>> TrainerService::OrderOf(const v1::PublishRequest& request) {
  if (!request.has_after()) return nullptr;
  auto order = std::make_shared<StreamOrder>(FromProto(request.after()));
  if (absl::Status status = order->Check(*memory_); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat("publish version ", request.version(), ": ", status.message()));
  }
  return order;
}

grpc::ServerUnaryReactor* TrainerService::Unregister(grpc::CallbackServerContext* context,
                                                     const v1::UnregisterRequest* request, v1::UnregisterReply* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  registrar_->Unregister(request->registration_id(), [reactor, reply](absl::StatusOr<bool> aborted) {
    if (aborted.ok()) reply->set_aborted_version(*aborted);
    reactor->Finish(ToGrpc(aborted.status()));
  });
  return reactor;
}

grpc::ServerUnaryReactor* TrainerService::GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest*,
                                                    v1::JobStatus* reply) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const bool queued = loop_->Run([this, reactor, reply] {
    *reply = status_();
    reactor->Finish(grpc::Status::OK);
  });
  if (!queued) reactor->Finish(ToGrpc(ShuttingDown()));
  return reactor;
}

}  // namespace wsync
