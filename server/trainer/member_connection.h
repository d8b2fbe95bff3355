// One sink's connection: reads one message at a time, and writes what the control thread queues.
//
// The next message is read only when the control thread has dealt with the last one, so a member that floods slows
// down itself and nobody else. One that does not read is disconnected once its queue is full. Calls are thread-safe;
// messages and `closed` come on gRPC's threads, or from within Send.
#ifndef WSYNC_SERVER_TRAINER_MEMBER_CONNECTION_H_
#define WSYNC_SERVER_TRAINER_MEMBER_CONNECTION_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/core/events.h"
#include "server/trainer/stream_writer.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

class MemberConnection final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                               public std::enable_shared_from_this<MemberConnection> {
 public:
  struct Handlers {
    // Calls ReadNext when it has dealt with the message.
    std::function<void(std::shared_ptr<MemberConnection>, v1::MemberMessage)> message;
    // Nothing more will come, and why. Always called; more than once where a connection ends in several ways.
    std::function<void(std::shared_ptr<MemberConnection>, const std::string& why)> closed;
  };
  // Owns itself until gRPC is done with it.
  static std::shared_ptr<MemberConnection> Open(grpc::CallbackServerContext* context, MemberId id, Handlers handlers);

  MemberId id() const { return id_; }
  const std::string& peer() const { return peer_; }  // its address, as gRPC writes it
  void ReadNext();
  void Send(const v1::CoordinatorMessage& message);
  void Send(const std::vector<grpc::ByteBuffer>& chunks);
  void Close(const absl::Status& why);  // after what is queued

 private:
  MemberConnection(grpc::CallbackServerContext* context, MemberId id, Handlers handlers);
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override { writer_.Written(ok); }
  void OnCancel() override;
  void OnDone() override;
  void Overflow();

  grpc::CallbackServerContext* const context_;
  const MemberId id_;
  const std::string peer_;
  const Handlers handlers_;
  grpc::ByteBuffer incoming_;
  StreamWriter<grpc::ByteBuffer> writer_;
  std::shared_ptr<MemberConnection> self_;  // gRPC's reference
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_MEMBER_CONNECTION_H_
