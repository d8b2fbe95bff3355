// One connection attempt to the coordinator's Member call. A reconnect is a new object.
//
// All methods: one thread (the controller's), never block. Handlers run on gRPC's threads and should only post. The
// destructor waits until gRPC is done with the call; after on_done that is now.
//
// The owner must not be one of gRPC's threads: with the object goes its channel, and the last channel to go joins
// gRPC's callback threads (1.51, CallbackAlternativeCQ), among which would be the one that waits.
#ifndef WSYNC_SERVER_ROLLOUT_MEMBER_STREAM_H_
#define WSYNC_SERVER_ROLLOUT_MEMBER_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>

#include "server/core/sync.h"
#include "wsync/v1/coordinator.grpc.pb.h"

namespace wsync {

class MemberStream final : public grpc::ClientBidiReactor<v1::MemberMessage, v1::CoordinatorMessage> {
 public:
  struct Handlers {
    std::function<void(v1::CoordinatorMessage)> on_message;
    std::function<void()> on_end;               // nothing more will come: call Release, and on_done follows
    std::function<void(grpc::Status)> on_done;  // last
  };
  MemberStream(std::shared_ptr<grpc::Channel> channel, Handlers handlers);
  ~MemberStream() override;

  void Send(v1::MemberMessage message);
  void Close();  // half-close, once everything sent is out
  // gRPC may end the call at any moment from here on, and takes no more of it: Send and Close do nothing.
  void Release();
  void Cancel();  // ends the call now; implies Release

 private:
  struct Latch {  // its own object: whoever waits may delete the stream while OnDone still signals
    Mutex mu;
    CondVar changed;
    bool done ABSL_GUARDED_BY(mu) = false;
  };

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  enum class Next { kNothing, kWrite, kClose };
  Next NextWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Start(Next next);

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Coordinator::Stub> stub_;
  const Handlers handlers_;
  grpc::ClientContext context_;
  v1::CoordinatorMessage incoming_;
  v1::MemberMessage outgoing_;  // being written
  bool released_ = false;       // the controller's thread only

  Mutex mu_;
  std::deque<v1::MemberMessage> queue_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;

  const std::shared_ptr<Latch> latch_ = std::make_shared<Latch>();
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_MEMBER_STREAM_H_
