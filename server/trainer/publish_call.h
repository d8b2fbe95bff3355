// One Publish call: writes what becomes of its version.
#ifndef WSYNC_SERVER_TRAINER_PUBLISH_CALL_H_
#define WSYNC_SERVER_TRAINER_PUBLISH_CALL_H_

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "server/trainer/publish_tracker.h"
#include "server/trainer/stream_writer.h"
#include "wsync/v1/trainer.pb.h"

namespace wsync {

class PublishCall final : public grpc::ServerWriteReactor<v1::PublishEvent>, public PublishWatcher {
 public:
  // Owns itself until gRPC is done with it: then, whoever ended it, `ended` is called, on a thread of gRPC's.
  static std::shared_ptr<PublishCall> Open(std::function<void(std::shared_ptr<PublishCall>)> ended);

  void Fail(const absl::Status& why);

  void OnAccepted(const action::PublishAccepted& accepted) override;
  void OnProgress(const PublishProgress& progress) override;
  void OnReleased(const action::PublishReleased& released) override;
  void OnDone(const action::PublishDone& done) override;

 private:
  explicit PublishCall(std::function<void(std::shared_ptr<PublishCall>)> ended);
  void OnWriteDone(bool ok) override { writer_.Written(ok); }
  void OnCancel() override;
  void OnDone() override { ended_(std::move(self_)); }

  const std::function<void(std::shared_ptr<PublishCall>)> ended_;
  StreamWriter<v1::PublishEvent> writer_;
  std::shared_ptr<PublishCall> self_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_PUBLISH_CALL_H_
