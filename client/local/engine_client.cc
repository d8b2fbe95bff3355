#include "client/local/engine_client.h"

#include <grpcpp/grpcpp.h>
#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/local/connect.h"
#include "server/core/sync.h"
#include "server/rpc/convert.h"
#include "wsync/v1/rollout.grpc.pb.h"

namespace wsync {
namespace {

constexpr int kDestinationsPerMessage = 4000;  // far below gRPC's 4 MiB cap for names of 512 bytes

void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

}  // namespace

struct EngineClient::Impl {
  void ReadUpdates();
  void StopReading();
  absl::Status Send(const v1::EngineMessage& message);

  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Rollout::Stub> stub;
  std::string attachment_id;
  std::unique_ptr<grpc::ClientContext> updates_context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::EngineMessage, v1::UpdateEvent>> updates;

  Mutex mu;
  CondVar changed;
  std::deque<v1::UpdateEvent> events ABSL_GUARDED_BY(mu);
  std::optional<absl::Status> ended ABSL_GUARDED_BY(mu);  // no more events than these
  std::thread reader;
};

void EngineClient::Impl::StopReading() {
  if (!reader.joinable()) return;
  updates_context->TryCancel();
  reader.join();
  MutexLock lock(&mu);
  events.clear();
  ended.reset();
}

void EngineClient::Impl::ReadUpdates() {
  pthread_setname_np(pthread_self(), "wsync-updates");
  v1::UpdateEvent event;
  while (updates->Read(&event)) {
    MutexLock lock(&mu);
    events.push_back(std::move(event));
    changed.SignalAll();
  }
  const grpc::Status status = updates->Finish();
  MutexLock lock(&mu);
  ended =
      status.ok() ? absl::UnavailableError("wsync-rollout ended the updates: it is shutting down") : FromGrpc(status);
  changed.SignalAll();
}

EngineClient::EngineClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

EngineClient::~EngineClient() { impl_->StopReading(); }

absl::StatusOr<std::unique_ptr<EngineClient>> EngineClient::Connect(const std::string& socket, absl::Duration timeout) {
  auto channel = ConnectLocal(socket, timeout, "wsync-rollout", "local_socket in rollout.yaml");
  if (!channel.ok()) return channel.status();
  auto impl = std::make_unique<Impl>();
  impl->channel = *channel;
  impl->stub = v1::Rollout::NewStub(impl->channel);
  return std::unique_ptr<EngineClient>(new EngineClient(std::move(impl)));
}

absl::StatusOr<EngineOutputs> EngineClient::GetOutputs(absl::Duration timeout) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  auto reader = impl_->stub->GetOutputs(&context, v1::GetOutputsRequest());
  EngineOutputs result;
  v1::OutputsReply reply;
  while (reader->Read(&reply)) {
    if (reply.has_rules()) {
      auto rules = FromProto(reply.rules());
      if (!rules.ok()) return rules.status();
      result.rules = *std::move(rules);
      result.payload_bytes = static_cast<int64_t>(reply.payload_bytes());
    }
    for (const v1::OutputTensor& output : reply.outputs()) {
      auto tensor = FromProto(output.tensor());
      if (!tensor.ok()) return tensor.status();
      result.outputs.push_back({*std::move(tensor), output.is_scale(), output.quantized()});
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpc(status);
  return result;
}

absl::StatusOr<v1::AttachReply> EngineClient::Attach(const std::string& engine,
                                                     const std::vector<MemoryHandle>& handles,
                                                     const std::vector<Destination>& destinations, bool allow_partial,
                                                     absl::Duration timeout, uint32_t layer_window) {
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  v1::AttachReply reply;
  auto writer = impl_->stub->Attach(&context, &reply);
  v1::AttachRequest request;
  request.mutable_header()->set_pid(getpid());
  request.mutable_header()->set_engine(engine);
  request.mutable_header()->set_allow_partial(allow_partial);
  request.mutable_header()->set_layer_window(layer_window);
  request.mutable_header()->set_destinations(destinations.size());
  for (const MemoryHandle& handle : handles) *request.mutable_header()->add_handles() = ToProto(handle);
  bool writable = true;
  for (const Destination& destination : destinations) {
    *request.add_destinations() = ToProto(destination);
    if (request.destinations_size() == kDestinationsPerMessage) {
      writable = writer->Write(request);
      request.Clear();
      if (!writable) break;  // the agent has answered already: Finish says why
    }
  }
  if (writable && (request.has_header() || request.destinations_size() > 0)) writer->Write(request);
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (!status.ok()) return FromGrpc(status);

  impl_->StopReading();  // of an attachment that ended before
  impl_->attachment_id = reply.attachment_id();
  impl_->updates_context = std::make_unique<grpc::ClientContext>();
  impl_->updates = impl_->stub->Updates(impl_->updates_context.get());
  v1::EngineMessage hello;
  hello.mutable_hello()->set_attachment_id(reply.attachment_id());
  if (!impl_->updates->Write(hello)) {
    const grpc::Status why = impl_->updates->Finish();
    impl_->updates.reset();
    return FromGrpc(why);
  }
  impl_->reader = std::thread([impl = impl_.get()] { impl->ReadUpdates(); });
  return reply;
}

absl::StatusOr<v1::UpdateEvent> EngineClient::Next() {
  if (!impl_->updates) return absl::FailedPreconditionError("not attached to a wsync-rollout: call Attach first");
  MutexLock lock(&impl_->mu);
  while (impl_->events.empty() && !impl_->ended.has_value()) impl_->changed.Wait(&impl_->mu);
  if (impl_->events.empty()) return *impl_->ended;
  v1::UpdateEvent event = std::move(impl_->events.front());
  impl_->events.pop_front();
  return event;
}

absl::Status EngineClient::Impl::Send(const v1::EngineMessage& message) {
  if (!updates) return absl::FailedPreconditionError("not attached to a wsync-rollout: call Attach first");
  if (updates->Write(message)) return absl::OkStatus();
  return absl::UnavailableError("wsync-rollout is gone");
}

absl::Status EngineClient::Paused(uint64_t version) {
  v1::EngineMessage message;
  message.mutable_paused()->set_version(version);
  return impl_->Send(message);
}

absl::Status EngineClient::ProvideLayer(uint64_t ticket, const std::vector<MemoryHandle>& handles,
                                        const std::vector<Destination>& destinations) {
  v1::EngineMessage message;
  v1::ProvideLayer* provide = message.mutable_provide_layer();
  provide->set_ticket(ticket);
  for (const MemoryHandle& handle : handles) *provide->add_handles() = ToProto(handle);
  for (const Destination& destination : destinations) *provide->add_destinations() = ToProto(destination);
  return impl_->Send(message);
}

absl::Status EngineClient::LayerTaken(uint64_t ticket) {
  v1::EngineMessage message;
  message.mutable_layer_taken()->set_ticket(ticket);
  return impl_->Send(message);
}

absl::Status EngineClient::LayerRefused(uint64_t ticket, const std::string& reason) {
  v1::EngineMessage message;
  message.mutable_layer_refused()->set_ticket(ticket);
  message.mutable_layer_refused()->set_reason(reason);
  return impl_->Send(message);
}

absl::Status EngineClient::Detach() {
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(10));
  v1::DetachRequest request;
  request.set_attachment_id(impl_->attachment_id);
  v1::DetachReply reply;
  return FromGrpc(impl_->stub->Detach(&context, request, &reply));
}

void EngineClient::Cancel() {
  if (impl_->updates_context) impl_->updates_context->TryCancel();
}

Destination WholeTensor(const Tensor& output, int32_t handle, int64_t offset_bytes) {
  const MatrixView view = ViewOf(output);
  Destination destination;
  destination.output = output.name;
  destination.dtype = output.dtype;
  destination.shape = output.shape;
  destination.row_end = view.rows;
  destination.col_end = view.cols;
  destination.handle = handle;
  destination.offset_bytes = offset_bytes;
  destination.row_pitch_bytes = view.cols * DtypeBytes(output.dtype);
  return destination;
}

}  // namespace wsync
