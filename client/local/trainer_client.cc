#include "client/local/trainer_client.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/local/connect.h"
#include "server/rpc/convert.h"
#include "wsync/v1/trainer.grpc.pb.h"

namespace wsync {
namespace {

// Far below gRPC's 4 MiB cap for names of 512 bytes.
constexpr size_t kTensorsPerMessage = 4000;

}  // namespace

struct TrainerClient::Impl {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Trainer::Stub> stub;
  std::string registration_id;
};

TrainerClient::TrainerClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TrainerClient::~TrainerClient() = default;

absl::StatusOr<std::unique_ptr<TrainerClient>> TrainerClient::Connect(const std::string& socket,
                                                                      absl::Duration timeout) {
  auto channel = ConnectLocal(socket, timeout, "wsync-trainer", "local_socket in trainer.yaml");
  if (!channel.ok()) return channel.status();
  auto impl = std::make_unique<Impl>();
  impl->channel = *channel;
  impl->stub = v1::Trainer::NewStub(impl->channel);
  return std::unique_ptr<TrainerClient>(new TrainerClient(std::move(impl)));
}

absl::StatusOr<v1::RegisterReply> TrainerClient::Register(const std::vector<MemoryHandle>& handles,
                                                          const std::vector<SourceTensor>& tensors,
                                                          const std::vector<std::string>& modules_to_not_convert,
                                                          bool replace) {
  grpc::ClientContext context;
  v1::RegisterReply reply;
  auto writer = impl_->stub->Register(&context, &reply);
  v1::RegisterRequest request;
  v1::RegisterHeader* header = request.mutable_header();
  header->set_pid(getpid());
  header->set_replace(replace);
  for (const MemoryHandle& handle : handles) *header->add_handles() = ToProto(handle);
  for (const std::string& module : modules_to_not_convert) header->add_modules_to_not_convert(module);
  bool writable = true;
  for (const SourceTensor& source : tensors) {
    v1::RegisteredTensor* out = request.add_tensors();
    *out->mutable_tensor() = ToProto(source.tensor);
    out->set_handle(source.handle);
    out->set_offset_bytes(source.offset_bytes);
    if (request.tensors_size() == static_cast<int>(kTensorsPerMessage)) {
      writable = writer->Write(request);
      request.Clear();
      if (!writable) break;  // the agent has answered already: Finish says why
    }
  }
  if (writable && (request.has_header() || request.tensors_size() > 0)) writer->Write(request);
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!status.ok()) return FromGrpc(status);
  impl_->registration_id = reply.registration_id();
  return reply;
}

absl::StatusOr<v1::VersionReport> TrainerClient::Publish(uint64_t version, const PublishObserver& observer) {
  grpc::ClientContext context;
  v1::PublishRequest request;
  request.set_registration_id(impl_->registration_id);
  request.set_version(version);
  auto reader = impl_->stub->Publish(&context, request);
  v1::PublishEvent event;
  v1::VersionReport report;
  bool committed = false;
  while (reader->Read(&event)) {
    switch (event.event_case()) {
      case v1::PublishEvent::kAccepted:
        if (observer.accepted) observer.accepted(event.accepted());
        break;
      case v1::PublishEvent::kProgress:
        if (observer.progress) observer.progress(event.progress());
        break;
      case v1::PublishEvent::kReleased:
        if (observer.released) observer.released(event.released());
        break;
      case v1::PublishEvent::kCommitted:
        report = event.committed();
        committed = true;
        break;
      case v1::PublishEvent::EVENT_NOT_SET:
        break;
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpc(status);
  if (!committed)
    return absl::InternalError(absl::StrCat("wsync-trainer ended version ", version, " without a report"));
  return report;
}

absl::Status TrainerClient::Unregister() {
  grpc::ClientContext context;
  v1::UnregisterRequest request;
  request.set_registration_id(impl_->registration_id);
  v1::UnregisterReply reply;
  return FromGrpc(impl_->stub->Unregister(&context, request, &reply));
}

}  // namespace wsync
