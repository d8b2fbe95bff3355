#include "server/rollout/rollout_service.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/rollout/updates_call.h"
#include "server/rpc/convert.h"
#include "server/rpc/whole_stream.h"

namespace wsync {
namespace {

constexpr size_t kChunkBytes = 1 << 20;  // of outputs per message: with the last one far below gRPC's 4 MiB
constexpr size_t kMaxEngineNameBytes = 256;
constexpr int64_t kMaxHandles = 65'536;
constexpr int64_t kMaxDestinations = 2 * kMaxTensors;  // data and scales of every tensor
// What an attach may take before it is checked: names are all that grows, 250 bytes for each of kMaxTensors with its
// scales.
constexpr size_t kMaxNamesBytes = size_t{2} << 30;

// For callers that gave no deadline of their own.
constexpr absl::Duration kDefaultWait = absl::Seconds(60);
// What is left of the caller's deadline for our answer to reach it: past the deadline it would only see gRPC's own
// "Deadline Exceeded", without the reason.
constexpr absl::Duration kAnswerMargin = absl::Milliseconds(100);

Caller CallerOf(const grpc::CallbackServerContext& context) {
  const auto left = absl::FromChrono(context.deadline() - std::chrono::system_clock::now());
  // gRPC says "no deadline" by one in the far future.
  const absl::Duration wait = left > absl::Hours(24 * 365) ? kDefaultWait : left - std::min(kAnswerMargin, left / 4);
  return Caller{MonotonicNow() + wait, std::make_shared<std::atomic<bool>>(false)};
}

class OutputsCall final : public grpc::ServerWriteReactor<v1::OutputsReply> {
 public:
  OutputsCall(LocalApi* api, const grpc::CallbackServerContext& context, CallLimit* limit) : place_(limit) {
    Caller caller = CallerOf(context);
    gone_ = caller.gone;
    if (!place_.status().ok()) {
      Finish(ToGrpc(place_.status()));
      return;
    }
    api->AwaitPlan(std::move(caller), [this](absl::StatusOr<std::shared_ptr<const Plan>> plan) {
      if (!plan.ok()) return Finish(ToGrpc(plan.status()));
      plan_ = *std::move(plan);
      reply_.mutable_rules()->CopyFrom(ToProto(plan_->rules()));
      reply_.set_payload_bytes(static_cast<uint64_t>(plan_->payload_bytes()));
      WriteNext();
    });
  }

 private:
  void WriteNext() {
    *reply_.mutable_plan_hash() = ToProto(plan_->hash());
    size_t bytes = 0;
    while (next_ < plan_->outputs().size() && bytes < kChunkBytes) {
      v1::OutputTensor* out = reply_.add_outputs();
      *out = OutputToProto(*plan_, plan_->outputs()[next_++]);
      bytes += out->ByteSizeLong();
    }
    StartWrite(&reply_);
  }
  void OnWriteDone(bool ok) override {
    reply_.Clear();
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the caller is gone"));
    if (next_ >= plan_->outputs().size()) return Finish(grpc::Status::OK);
    WriteNext();
  }
  void OnCancel() override { gone_->store(true); }
  void OnDone() override { delete this; }

  const CallLimit::Place place_;
  std::shared_ptr<std::atomic<bool>> gone_;
  std::shared_ptr<const Plan> plan_;
  size_t next_ = 0;
  v1::OutputsReply reply_;
};

class AttachCall final : public grpc::ServerReadReactor<v1::AttachRequest> {
 public:
  AttachCall(LocalApi* api, const grpc::CallbackServerContext& context, v1::AttachReply* reply, CallLimit* limit)
      : api_(api), context_(context), place_(limit), caller_(CallerOf(context)), gone_(caller_.gone), reply_(reply) {
    place_.status().ok() ? StartRead(&request_) : Finish(ToGrpc(place_.status()));
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Submit();
    if (absl::Status status = Take(request_); !status.ok()) return Finish(ToGrpc(status));
    StartRead(&request_);
  }

  absl::Status Take(const v1::AttachRequest& request) {
    if (request.has_header() == std::exchange(has_header_, true)) {
      return absl::InvalidArgumentError("Attach begins with one message that has a header, and no other has one");
    }
    if (request.has_header()) {
      if (absl::Status status = TakeHeader(request.header()); !status.ok()) return status;
    }
    if (static_cast<int64_t>(spec_.destinations.size()) + request.destinations_size() > kMaxDestinations) {
      return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxDestinations, " destinations"));
    }
    for (const v1::Destination& destination : request.destinations()) {
      absl::StatusOr<Destination> converted = FromProto(destination);
      if (!converted.ok()) return converted.status();
      name_bytes_ += converted->output.size();
      spec_.destinations.push_back(*std::move(converted));
    }
    if (name_bytes_ > kMaxNamesBytes) {
      return absl::InvalidArgumentError("the destinations' names take more than 2 GiB: is the list garbled?");
    }
    return absl::OkStatus();
  }

  absl::Status TakeHeader(const v1::AttachHeader& header) {
    if (header.engine().empty() || header.engine().size() > kMaxEngineNameBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("AttachHeader.engine must be a name of 1 to ", kMaxEngineNameBytes, " bytes"));
    }
    if (header.handles_size() > kMaxHandles) {
      return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxHandles, " memory handles"));
    }
    spec_.engine = header.engine();
    spec_.pid = header.pid();
    spec_.allow_partial = header.allow_partial();
    spec_.layer_events = header.layer_events();
    spec_.layer_window = header.layer_window();
    if (header.has_destinations()) announced_ = header.destinations();
    for (const v1::MemoryHandle& handle : header.handles()) {
      absl::StatusOr<MemoryHandle> converted = FromProto(handle);
      if (!converted.ok()) return converted.status();
      spec_.handles.push_back(*std::move(converted));
    }
    return absl::OkStatus();
  }

  void Submit() {
    absl::Status whole = CheckWhole(announced_, spec_.destinations.size(), context_.IsCancelled(), "destinations");
    if (!has_header_) whole.Update(absl::InvalidArgumentError("Attach without any message"));
    if (!whole.ok()) return Finish(ToGrpc(whole));
    api_->Attach(std::move(caller_), std::move(spec_), [this](absl::StatusOr<Attached> attached) {
      if (!attached.ok()) return Finish(ToGrpc(attached.status()));
      reply_->set_attachment_id(attached->attachment_id);
      *reply_->mutable_plan_hash() = ToProto(attached->plan_hash);
      reply_->set_bytes_per_version(static_cast<uint64_t>(attached->bytes_per_version));
      Finish(grpc::Status::OK);
    });
  }
  void OnCancel() override { gone_->store(true); }
  void OnDone() override { delete this; }

  LocalApi* const api_;
  const grpc::CallbackServerContext& context_;
  const CallLimit::Place place_;
  Caller caller_;
  const std::shared_ptr<std::atomic<bool>> gone_;
  v1::AttachReply* const reply_;
  v1::AttachRequest request_;
  AttachSpec spec_;
  bool has_header_ = false;
  std::optional<uint64_t> announced_;  // destinations
  size_t name_bytes_ = 0;
};

}  // namespace

grpc::ServerWriteReactor<v1::OutputsReply>* RolloutService::GetOutputs(grpc::CallbackServerContext* context,
                                                                       const v1::GetOutputsRequest*) {
  return new OutputsCall(api_, *context, &outputs_calls_);
}

grpc::ServerReadReactor<v1::AttachRequest>* RolloutService::Attach(grpc::CallbackServerContext* context,
                                                                   v1::AttachReply* reply) {
  return new AttachCall(api_, *context, reply, &attach_calls_);
}

grpc::ServerBidiReactor<v1::EngineMessage, v1::UpdateEvent>* RolloutService::Updates(grpc::CallbackServerContext*) {
  return UpdatesCall::Start(api_, &update_streams_);
}

grpc::ServerUnaryReactor* RolloutService::Detach(grpc::CallbackServerContext* context, const v1::DetachRequest* request,
                                                 v1::DetachReply*) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  api_->Detach(request->attachment_id(), [reactor](const absl::Status& status) { reactor->Finish(ToGrpc(status)); });
  return reactor;
}

}  // namespace wsync
