#include "server/trainer/member_connection.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"
#include "server/trainer/catalog_chunks.h"

namespace wsync {
namespace {

// A healthy member has one or two messages waiting; 256 heartbeat answers unread mean that it has stopped.
constexpr size_t kMaxQueued = 256;

const grpc::Status kGone(grpc::StatusCode::CANCELLED, "the member is gone");
constexpr char kBroke[] = "its connection broke";

}  // namespace

std::shared_ptr<MemberConnection> MemberConnection::Open(grpc::CallbackServerContext* context, MemberId id,
                                                         Handlers handlers) {
  std::shared_ptr<MemberConnection> connection(new MemberConnection(context, id, std::move(handlers)));
  connection->self_ = connection;
  return connection;
}

MemberConnection::MemberConnection(grpc::CallbackServerContext* context, MemberId id, Handlers handlers)
    : context_(context),
      id_(id),
      peer_(context->peer()),
      handlers_(std::move(handlers)),
      writer_({[this](const grpc::ByteBuffer* message) { StartWrite(message); },
               [this](const grpc::Status& status) { Finish(status); },
               [this](const grpc::ByteBuffer* message, const grpc::Status& status) {
                 StartWriteAndFinish(message, grpc::WriteOptions(), status);
               }}) {}

void MemberConnection::ReadNext() {
  writer_.IfOpen([this] { StartRead(&incoming_); });
}

void MemberConnection::Send(const v1::CoordinatorMessage& message) {
  if (!writer_.Push(Serialize(message), kMaxQueued)) Overflow();
}

void MemberConnection::Send(const std::vector<grpc::ByteBuffer>& chunks) {
  for (const grpc::ByteBuffer& chunk : chunks) {
    // As many as the catalog has, on top of the bound: their bytes are shared.
    if (!writer_.Push(chunk, kMaxQueued + chunks.size())) return Overflow();
  }
}

void MemberConnection::Overflow() {
  handlers_.closed(shared_from_this(), "it does not read what it is sent");  // before the stream breaks: first says why
  writer_.IfOpen([this] { context_->TryCancel(); });                         // fails the write it is stuck in
  writer_.Break(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the member does not read what it is sent"));
}

void MemberConnection::Close(const absl::Status& why) { writer_.Close(ToGrpc(why)); }

void MemberConnection::OnReadDone(bool ok) {
  v1::MemberMessage message;
  if (ok) {
    grpc::ProtoBufferReader reader(&incoming_);
    if (reader.status().ok() && message.ParseFromZeroCopyStream(&reader)) {
      incoming_.Clear();
      return handlers_.message(self_, std::move(message));
    }
    writer_.Break(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "not a MemberMessage"));
  } else {
    writer_.Close(grpc::Status::OK);  // a half-close says goodbye
  }
  handlers_.closed(self_, kBroke);
}

void MemberConnection::OnCancel() { writer_.Break(kGone); }

void MemberConnection::OnDone() {
  // A stream that is finished between two reads has none whose end would say so.
  handlers_.closed(self_, kBroke);
  self_ = nullptr;
}

}  // namespace wsync
