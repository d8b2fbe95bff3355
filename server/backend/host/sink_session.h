// A sink's end of one session: one thread that owns the stream and copies chunks to where broadcasts want them.
//
// The thread waits in one place only, its completion queue, so gRPC is always polled (keepalives are answered while the
// next broadcast is not posted yet) and every wake-up is an event of that queue. It alone touches receive memory; other
// threads only queue, set flags and wake it.
#ifndef WSYNC_SERVER_BACKEND_HOST_SINK_SESSION_H_
#define WSYNC_SERVER_BACKEND_HOST_SINK_SESSION_H_

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <atomic>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "server/backend/host/completion.h"
#include "server/backend/host/data_chunk.h"
#include "server/backend/transport.h"
#include "server/core/sync.h"

namespace wsync::host {

class SinkSession final : public std::enable_shared_from_this<SinkSession> {
 public:
  SinkSession(const SessionSpec& spec, std::shared_ptr<grpc::ChannelCredentials> credentials);

  absl::Status Connect(absl::Time deadline);  // starts the thread
  CompletionPtr Broadcast(std::byte* data, int64_t bytes, const CompletionPtr& after);
  void Cancel(const absl::Status& why);
  void Join();  // after Cancel; then nothing touches receive memory any more
  int64_t moved_bytes() const { return moved_bytes_.load(std::memory_order_relaxed); }

 private:
  enum class State { kNew, kConnecting, kConnected, kOver };
  enum class Wake { kAwake, kParked, kComing };  // kComing: an alarm is set, its event must be taken

  struct Receive {
    ChunkTarget target;
    bool ready = false;  // `after` is done
    std::shared_ptr<HostCompletion> completion = std::make_shared<HostCompletion>();
  };
  using ReceivePtr = std::shared_ptr<Receive>;

  // On the thread.
  void Run();
  bool Open();
  bool ReceiveChunk();
  ReceivePtr AwaitReceive();
  void Close();
  bool Await(void* tag);

  void Ready(const ReceivePtr& receive, const absl::Status& after);
  void WakeUp(Receive* ready);
  absl::Status SetOver(const absl::Status& why);
  std::vector<ReceivePtr> TakeFinished() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const SessionSpec spec_;
  const std::shared_ptr<grpc::ChannelCredentials> credentials_;

  // The stream: the thread's, but for the context's TryCancel and the alarm of WakeUp.
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  grpc::Alarm alarm_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer chunk_;

  std::atomic<int64_t> moved_bytes_ = 0;
  Mutex mu_;
  CondVar changed_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kNew;
  Wake wake_ ABSL_GUARDED_BY(mu_) = Wake::kAwake;
  std::deque<ReceivePtr> receives_ ABSL_GUARDED_BY(mu_);  // in order, not complete
  uint64_t next_sequence_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status why_ ABSL_GUARDED_BY(mu_);  // the session is over
  std::thread thread_;                     // of the thread that calls Connect and Join
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_SINK_SESSION_H_
