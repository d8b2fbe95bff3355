// The source's end of one sink's stream: a gRPC reactor with one write at a time and an end that always comes.
//
// gRPC owns it until OnDone; others hold it by shared_ptr and may call it at any time, also after the stream is gone.
// Thread-safe. The listener is called on gRPC's callback threads with no lock held.
#ifndef WSYNC_SERVER_BACKEND_HOST_SINK_STREAM_H_
#define WSYNC_SERVER_BACKEND_HOST_SINK_STREAM_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/status/status.h"
#include "server/core/sync.h"

namespace wsync::host {

class SinkStreamListener {
 public:
  virtual ~SinkStreamListener() = default;
  virtual void OnWritten(int32_t rank) = 0;  // the last Write was taken over by gRPC; the next may come
  virtual void OnGone(int32_t rank) = 0;     // nothing will be written any more; called once, not before Attach
};

class SinkStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  static std::shared_ptr<SinkStream> New(grpc::CallbackServerContext* context);

  // From now on the stream belongs to `listener` as `rank`; tells the sink that it was accepted.
  void Attach(std::shared_ptr<SinkStreamListener> listener, int32_t rank);
  // REQUIRES: attached, and no write since the last OnWritten. After the end the chunk is dropped.
  void Write(grpc::ByteBuffer chunk);
  // Ends the stream; an unfinished write is torn off, and the sink then sees CANCELLED instead of `status`.
  void End(const absl::Status& status);
  bool ended();

 private:
  explicit SinkStream(grpc::CallbackServerContext* context) : context_(context) {}
  void OnSendInitialMetadataDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Unpin();
  void BeginEnd(const absl::Status& status, bool tear_off);

  grpc::CallbackServerContext* const context_;
  Mutex mu_;
  std::shared_ptr<SinkStream> self_ ABSL_GUARDED_BY(mu_);  // gRPC's reference
  grpc::ByteBuffer chunk_ ABSL_GUARDED_BY(mu_);            // gRPC's while a write is under way
  std::shared_ptr<SinkStreamListener> listener_ ABSL_GUARDED_BY(mu_);
  int32_t rank_ ABSL_GUARDED_BY(mu_) = -1;
  // Operations and calls that use gRPC's objects. While there is one they stay valid; the last one out after the end
  // finishes the call.
  int pins_ ABSL_GUARDED_BY(mu_) = 0;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync::host

#endif  // WSYNC_SERVER_BACKEND_HOST_SINK_STREAM_H_
