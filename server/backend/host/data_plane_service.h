// The gRPC service wsync.v1.DataPlane: authorises a sink's call and hands its stream to the session it names.
//
// Registered with the agent's server, which must be shut down before this goes. Raw messages: payloads are not copied
// into protobuf objects. Callbacks never block.
#ifndef WSYNC_SERVER_BACKEND_HOST_DATA_PLANE_SERVICE_H_
#define WSYNC_SERVER_BACKEND_HOST_DATA_PLANE_SERVICE_H_

#include <functional>
#include <memory>

#include "server/backend/host/session_registry.h"
#include "wsync/v1/data_plane.grpc.pb.h"

namespace wsync::host {

using Authorize = std::function<absl::Status(const grpc::ServerContextBase&)>;

class DataPlaneService final : public v1::DataPlane::WithRawCallbackMethod_Receive<v1::DataPlane::Service> {
 public:
  DataPlaneService(std::shared_ptr<SessionRegistry> registry, Authorize authorize)
      : registry_(std::move(registry)), authorize_(std::move(authorize)) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Receive(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request) override;

 private:
  const std::shared_ptr<SessionRegistry> registry_;
  const Authorize authorize_;
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_DATA_PLANE_SERVICE_H_
