#include "server/rollout/updates_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"

namespace wsync {
namespace {

absl::StatusOr<LayerMemory> MemoryFrom(const v1::ProvideLayer& message) {
  LayerMemory memory;
  for (const v1::MemoryHandle& handle : message.handles()) {
    absl::StatusOr<MemoryHandle> converted = FromProto(handle);
    if (!converted.ok()) return converted.status();
    memory.handles.push_back(*std::move(converted));
  }
  for (const v1::Destination& destination : message.destinations()) {
    absl::StatusOr<Destination> converted = FromProto(destination);
    if (!converted.ok()) return converted.status();
    memory.destinations.push_back(*std::move(converted));
  }
  return memory;
}

}  // namespace

v1::OutputTensor OutputToProto(const Plan& plan, const Output& output) {
  v1::OutputTensor message;
  *message.mutable_tensor() = ToProto(Tensor{output.name, output.dtype, output.shape});
  message.set_is_scale(output.is_scale);
  message.set_quantized(!output.is_scale && plan.recipes()[output.tensor].recipe.fp8);
  return message;
}

grpc::ServerBidiReactor<v1::EngineMessage, v1::UpdateEvent>* UpdatesCall::Start(LocalApi* api, CallLimit* limit) {
  std::shared_ptr<UpdatesCall> call(new UpdatesCall(api, limit));
  call->self_ = call;
  const absl::Status taken = call->place_.status();
  taken.ok() ? call->Heard() : call->Finish(taken);
  return call.get();
}

void UpdatesCall::OnReadDone(bool ok) {
  if (!ok) return api_->EngineGone(self_, absl::CancelledError("the engine closed its update stream"));
  // The next is read once the controller has dealt with this one: an engine cannot fill its queue.
  if (absl::Status status = Hear(std::exchange(incoming_, {})); !status.ok()) return api_->EngineGone(self_, status);
}

void UpdatesCall::Heard() {
  MutexLock lock(&mu_);
  if (!finish_) StartRead(&incoming_);
}

absl::Status UpdatesCall::Hear(const v1::EngineMessage& message) {
  if (greeted_ == message.has_hello()) {
    return absl::InvalidArgumentError("Updates begins with one `hello`, and no other follows; attach again");
  }
  switch (message.message_case()) {
    case v1::EngineMessage::kHello:
      greeted_ = true;
      api_->OpenUpdates(message.hello().attachment_id(), self_);
      return absl::OkStatus();
    case v1::EngineMessage::kPaused: {
      const v1::EnginePaused& paused = message.paused();
      std::optional<EventHandle> after;
      if (paused.has_after()) after = FromProto(paused.after());
      api_->EnginePaused(self_, paused.version(), std::move(after));
      return absl::OkStatus();
    }
    case v1::EngineMessage::kProvideLayer: {
      absl::StatusOr<LayerMemory> memory = MemoryFrom(message.provide_layer());
      if (!memory.ok()) return memory.status();
      api_->EngineAnswers(self_, {message.provide_layer().ticket(), LayerProvided{*std::move(memory)}});
      return absl::OkStatus();
    }
    case v1::EngineMessage::kLayerTaken:
      api_->EngineAnswers(self_, {message.layer_taken().ticket(), LayerTaken{}});
      return absl::OkStatus();
    case v1::EngineMessage::kLayerRefused:
      api_->EngineAnswers(self_, {message.layer_refused().ticket(), LayerRefused{message.layer_refused().reason()}});
      return absl::OkStatus();
    case v1::EngineMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "the engine sent a message that this agent does not know: it is of another version");
}

void UpdatesCall::OnCancel() { api_->EngineGone(self_, absl::CancelledError("the engine's update stream broke")); }

void UpdatesCall::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) broken_ = true;  // the read side says so, too
  }
  GoOn();
}

void UpdatesCall::Prepare(const sink::TellPrepare& event) {
  v1::UpdateEvent message;
  message.mutable_prepare()->set_version(event.version);
  message.mutable_prepare()->set_in_place(event.in_place);
  Send(std::move(message));
}

void UpdatesCall::LayerComplete(uint64_t version, const LayerReady& layer) {
  v1::UpdateEvent message;
  message.mutable_layer_ready()->set_version(version);
  message.mutable_layer_ready()->set_layer(layer.name);
  message.mutable_layer_ready()->set_ready(layer.ready);
  message.mutable_layer_ready()->set_layers(layer.layers);
  message.mutable_layer_ready()->set_ticket(layer.ticket);
  Send(std::move(message));
}

void UpdatesCall::WantLayer(uint64_t version, const LayerWanted& layer) {
  v1::UpdateEvent message;
  v1::LayerWanted* wanted = message.mutable_layer_wanted();
  wanted->set_ticket(layer.ticket);
  wanted->set_version(version);
  wanted->set_layer(layer.layer);
  for (const int64_t output : layer.outputs) {
    *wanted->add_outputs() = OutputToProto(*layer.plan, layer.plan->outputs()[output]);
  }
  Send(std::move(message));
}

void UpdatesCall::Apply(const sink::TellApply& event) {
  v1::UpdateEvent message;
  message.mutable_apply()->set_version(event.version);
  Send(std::move(message));
}

void UpdatesCall::Applied(const sink::TellApplied& event) {
  v1::UpdateEvent message;
  message.mutable_applied()->set_version(event.version);
  *message.mutable_applied()->mutable_content_digest() = ToProto(event.digest);
  *message.mutable_applied()->mutable_timings() = ToProto(event.timings);
  Send(std::move(message));
}

void UpdatesCall::Torn(const sink::TellTorn& event) {
  v1::UpdateEvent message;
  message.mutable_torn()->set_version(event.version);
  message.mutable_torn()->set_reason(event.reason);
  Send(std::move(message));
}

void UpdatesCall::Cancelled(const sink::TellCancelled& event) {
  v1::UpdateEvent message;
  message.mutable_cancelled()->set_version(event.version);
  message.mutable_cancelled()->set_reason(event.reason);
  Send(std::move(message));
}

void UpdatesCall::Finish(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    if (finish_) return;
    finish_ = status;
  }
  GoOn();
}

void UpdatesCall::Send(v1::UpdateEvent event) {
  bool full = false;
  {
    MutexLock lock(&mu_);
    if (finish_ || unread_) return;
    unread_ = queue_.size() >= kMaxUnread;
    if (!unread_) queue_.push_back(std::move(event));
    full = unread_;
  }
  if (full) {
    return api_->EngineGone(self_, absl::ResourceExhaustedError(absl::StrCat(
                                       "the engine does not read its update stream: ", kMaxUnread,
                                       " events wait there; attach again, and read on while weights are used")));
  }
  GoOn();
}

// Starts the next write, or the end. Decided under the lock, done without it: gRPC may call back from within. While a
// write runs nothing else starts, so the object cannot go away between decision and deed.
void UpdatesCall::GoOn() {
  std::optional<absl::Status> finish;
  {
    MutexLock lock(&mu_);
    if (writing_ || finished_) return;
    if (!queue_.empty() && !broken_) {
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      writing_ = true;
    } else if (finish_) {
      finished_ = true;
      finish = finish_;
    } else {
      return;
    }
  }
  if (finish) {
    ServerBidiReactor::Finish(ToGrpc(*finish));
  } else {
    StartWrite(&outgoing_);
  }
}

}  // namespace wsync
