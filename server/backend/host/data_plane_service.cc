#include "server/backend/host/data_plane_service.h"

#include <utility>

namespace wsync::host {
namespace {

constexpr size_t kMaxRequestBytes = 1024;  // a token and a rank
constexpr size_t kMaxTokenBytes = 256;

absl::Status Parse(const grpc::ByteBuffer& message, v1::ReceiveRequest* request) {
  grpc::ByteBuffer bytes = message;
  if (bytes.Length() <= kMaxRequestBytes &&
      grpc::SerializationTraits<v1::ReceiveRequest>::Deserialize(&bytes, request).ok() &&
      !request->session_token().empty() && request->session_token().size() <= kMaxTokenBytes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("data plane: malformed ReceiveRequest; it takes a session token and a rank");
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* DataPlaneService::Receive(grpc::CallbackServerContext* context,
                                                                      const grpc::ByteBuffer* request) {
  std::shared_ptr<SinkStream> stream = SinkStream::New(context);
  SinkStream* const reactor = stream.get();  // gRPC keeps it alive from here on
  v1::ReceiveRequest parsed;
  absl::Status status = authorize_ ? authorize_(*context) : absl::OkStatus();
  if (status.ok()) status = Parse(*request, &parsed);
  if (!status.ok()) {
    stream->End(status);
  } else {
    registry_->Admit(parsed.session_token(), parsed.rank(), std::move(stream));
  }
  return reactor;
}

}  // namespace wsync::host
