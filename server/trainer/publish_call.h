// One Publish call: writes what becomes of its version.
#ifndef WSYNC_SERVER_TRAINER_PUBLISH_CALL_H_
#define WSYNC_SERVER_TRAINER_PUBLISH_CALL_H_

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "server/rpc/call_limit.h"
#include "server/trainer/publish_tracker.h"
#include "server/trainer/stream_writer.h"
#include "wsync/v1/trainer.pb.h"

namespace wsync {

class PublishCall final : public grpc::ServerWriteReactor<v1::PublishEvent>, public PublishWatcher {
 public:
  // Owns itself until gRPC is done with it. `hung_up` is called when the caller did, on a thread of gRPC's.
  static std::shared_ptr<PublishCall> Open(std::function<void()> hung_up, CallLimit* limit);
  // RESOURCE_EXHAUSTED: too many are open, and this one is to Fail.
  absl::Status taken() const { return place_.status(); }

  void Fail(const absl::Status& why);

  void OnAccepted(const action::PublishAccepted& accepted) override;
  void OnProgress(const PublishProgress& progress) override;
  void OnReleased(const action::PublishReleased& released) override;
  void OnDone(const action::PublishDone& done) override;
  bool HungUp() const override { return gone_; }

 private:
  PublishCall(std::function<void()> hung_up, CallLimit* limit);
  void OnWriteDone(bool ok) override { writer_.Written(ok); }
  void OnCancel() override;
  void OnDone() override { self_ = nullptr; }

  const CallLimit::Place place_;
  const std::function<void()> hung_up_;
  std::atomic<bool> gone_ = false;
  StreamWriter<v1::PublishEvent> writer_;
  std::shared_ptr<PublishCall> self_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_PUBLISH_CALL_H_
