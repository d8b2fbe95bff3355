// One Register call: collects the streamed catalog, bounded, then has the registrar decide.
#ifndef WSYNC_SERVER_TRAINER_REGISTER_CALL_H_
#define WSYNC_SERVER_TRAINER_REGISTER_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "server/rpc/call_limit.h"
#include "server/trainer/registrar.h"
#include "wsync/v1/trainer.pb.h"

namespace wsync {

// Deletes itself when gRPC is done with it.
class RegisterCall final : public grpc::ServerReadReactor<v1::RegisterRequest> {
 public:
  RegisterCall(grpc::CallbackServerContext* context, v1::RegisterReply* reply, Registrar* registrar, CallLimit* limit);

 private:
  void OnReadDone(bool ok) override;
  void OnDone() override { delete this; }
  absl::Status Take(const v1::RegisterRequest& message);
  absl::Status TakeHeader(const v1::RegisterHeader& header);
  void Decide();
  void Preview();
  void Describe(const PlanInfo& plan);

  grpc::CallbackServerContext* const context_;
  v1::RegisterReply* const reply_;
  Registrar* const registrar_;
  v1::RegisterRequest message_;
  RegistrationRequest request_;
  const CallLimit::Place place_;
  bool has_header_ = false;
  std::optional<uint64_t> announced_;  // tensors
  size_t name_bytes_ = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_REGISTER_CALL_H_
