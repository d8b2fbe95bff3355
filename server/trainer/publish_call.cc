#include "server/trainer/publish_call.h"

#include <utility>

#include "server/rpc/convert.h"

namespace wsync {
namespace {

constexpr size_t kAlways = 16;  // a call has at most four events besides progress

}  // namespace

std::shared_ptr<PublishCall> PublishCall::Open(std::function<void()> hung_up, CallLimit* limit) {
  std::shared_ptr<PublishCall> call(new PublishCall(std::move(hung_up), limit));
  call->self_ = call;
  return call;
}

PublishCall::PublishCall(std::function<void()> hung_up, CallLimit* limit)
    : place_(limit),
      hung_up_(std::move(hung_up)),
      writer_({[this](const v1::PublishEvent* event) { StartWrite(event); },
               [this](const grpc::Status& status) { Finish(status); },
               [this](const v1::PublishEvent* event, const grpc::Status& status) {
                 StartWriteAndFinish(event, grpc::WriteOptions(), status);
               }}) {}

void PublishCall::Fail(const absl::Status& why) { writer_.Close(ToGrpc(why)); }

void PublishCall::OnAccepted(const action::PublishAccepted& accepted) {
  v1::PublishEvent event;
  event.mutable_accepted()->set_epoch(accepted.epoch);
  event.mutable_accepted()->set_replicas(accepted.replicas);
  writer_.Push(std::move(event), kAlways);
}

void PublishCall::OnProgress(const PublishProgress& progress) {
  v1::PublishEvent event;
  v1::PublishProgress* proto = event.mutable_progress();
  proto->set_encoded_bytes(static_cast<uint64_t>(progress.source.encoded_bytes));
  proto->set_sent_bytes(static_cast<uint64_t>(progress.source.sent_bytes));
  proto->set_total_bytes(static_cast<uint64_t>(progress.source.total_bytes));
  proto->set_staged_replicas(progress.staged_replicas);
  proto->set_applied_replicas(progress.applied_replicas);
  proto->set_replicas(progress.replicas);
  writer_.Push(std::move(event), 1);  // only if the caller has read everything: old progress is worth nothing
}

void PublishCall::OnReleased(const action::PublishReleased& released) {
  v1::PublishEvent event;
  event.mutable_released()->set_elapsed_ms(absl::ToDoubleMilliseconds(released.elapsed));
  writer_.Push(std::move(event), kAlways);
}

void PublishCall::OnDone(const action::PublishDone& done) {
  if (!done.status.ok()) return writer_.Close(ToGrpc(done.status));
  v1::PublishEvent event;
  *event.mutable_committed() = ToProto(done.report);
  writer_.PushLast(std::move(event), grpc::Status::OK);
}

void PublishCall::OnCancel() {
  gone_ = true;
  hung_up_();
  writer_.Break(grpc::Status(grpc::StatusCode::CANCELLED, "the caller hung up"));
}

}  // namespace wsync
