// One `wsync status -w`: the status now, and again when it changed, not faster than the caller wants.
//
// Update comes from the control thread; a caller that reads slowly skips states.
#ifndef WSYNC_SERVER_TRAINER_WATCH_STREAM_H_
#define WSYNC_SERVER_TRAINER_WATCH_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/trainer/stream_writer.h"
#include "wsync/v1/coordinator.pb.h"

namespace wsync {

class WatchStream final : public grpc::ServerWriteReactor<v1::JobStatus> {
 public:
  // Owns itself until gRPC is done with it.
  static std::shared_ptr<WatchStream> Open(absl::Duration min_interval);

  bool closed() const { return writer_.Closed(); }
  // Sends `status()` if it is due and `changes` is not what was sent last. Returns when to be called again.
  absl::Time Update(absl::Time now, uint64_t changes, const std::function<v1::JobStatus()>& status);
  void Close(const absl::Status& why);

 private:
  explicit WatchStream(absl::Duration min_interval);
  void OnWriteDone(bool ok) override { writer_.Written(ok); }
  void OnCancel() override;
  void OnDone() override { self_ = nullptr; }

  const absl::Duration min_interval_;
  StreamWriter<v1::JobStatus> writer_;
  absl::Time last_sent_ = absl::InfinitePast();  // control thread
  uint64_t last_changes_ = UINT64_MAX;           // likewise
  std::shared_ptr<WatchStream> self_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_WATCH_STREAM_H_
