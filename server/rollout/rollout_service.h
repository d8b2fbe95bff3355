// The local API (rollout.proto) over gRPC's callbacks. Reads and bounds what comes in, hands it to the controller,
// never blocks.
#ifndef WSYNC_SERVER_ROLLOUT_ROLLOUT_SERVICE_H_
#define WSYNC_SERVER_ROLLOUT_ROLLOUT_SERVICE_H_

#include "server/rollout/local_api.h"
#include "server/rpc/call_limit.h"
#include "wsync/v1/rollout.grpc.pb.h"

namespace wsync {

class RolloutService final : public v1::Rollout::CallbackService {
 public:
  explicit RolloutService(LocalApi* api) : api_(api) {}

  grpc::ServerWriteReactor<v1::OutputsReply>* GetOutputs(grpc::CallbackServerContext* context,
                                                         const v1::GetOutputsRequest* request) override;
  grpc::ServerReadReactor<v1::AttachRequest>* Attach(grpc::CallbackServerContext* context,
                                                     v1::AttachReply* reply) override;
  grpc::ServerBidiReactor<v1::EngineMessage, v1::UpdateEvent>* Updates(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Detach(grpc::CallbackServerContext* context, const v1::DetachRequest* request,
                                   v1::DetachReply* reply) override;

 private:
  LocalApi* const api_;
  CallLimit outputs_calls_{"GetOutputs", 1024};
  CallLimit attach_calls_{"Attach", 64};
  CallLimit update_streams_{"Updates", 1024};
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_ROLLOUT_SERVICE_H_
