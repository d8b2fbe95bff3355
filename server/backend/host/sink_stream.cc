#include "server/backend/host/sink_stream.h"

#include <utility>

#include "server/backend/host/grpc_status.h"

namespace wsync::host {

std::shared_ptr<SinkStream> SinkStream::New(grpc::CallbackServerContext* context) {
  std::shared_ptr<SinkStream> stream(new SinkStream(context));
  stream->self_ = stream;
  return stream;
}

bool SinkStream::Pin() {
  MutexLock lock(&mu_);
  if (ending_) return false;
  ++pins_;
  return true;
}

void SinkStream::Unpin() {
  absl::Status end;
  {
    MutexLock lock(&mu_);
    if (--pins_ > 0 || !ending_) return;
    end = end_;
  }
  Finish(ToGrpc(end));
}

void SinkStream::Attach(std::shared_ptr<SinkStreamListener> listener, int32_t rank) {
  {
    MutexLock lock(&mu_);
    if (!ending_) {
      listener_ = std::move(listener);
      rank_ = rank;
      ++pins_;  // until OnSendInitialMetadataDone
    }
  }
  if (listener != nullptr) return listener->OnGone(rank);
  StartSendInitialMetadata();
}

void SinkStream::Write(grpc::ByteBuffer chunk) {
  if (!Pin()) return;  // the listener was or will be told that the stream is gone
  chunk_ = std::move(chunk);
  StartWrite(&chunk_);
}

void SinkStream::End(const absl::Status& status) { BeginEnd(status, /*tear_off=*/true); }

bool SinkStream::ended() {
  MutexLock lock(&mu_);
  return ending_;
}

void SinkStream::BeginEnd(const absl::Status& status, bool tear_off) {
  std::shared_ptr<SinkStreamListener> listener;
  int32_t rank = 0;
  bool busy = false;
  {
    MutexLock lock(&mu_);
    if (ending_) return;
    ending_ = true;
    end_ = status;
    listener = std::move(listener_);
    rank = rank_;
    busy = pins_ > 0;
    ++pins_;
  }
  if (busy && tear_off) context_->TryCancel();
  Unpin();
  if (listener != nullptr) listener->OnGone(rank);
}

void SinkStream::OnSendInitialMetadataDone(bool) { Unpin(); }  // a failure also gives OnCancel

void SinkStream::OnWriteDone(bool ok) {
  chunk_.Clear();
  std::shared_ptr<SinkStreamListener> listener;
  int32_t rank = 0;
  {
    MutexLock lock(&mu_);
    listener = listener_;
    rank = rank_;
  }
  if (!ok) BeginEnd(absl::UnavailableError("the sink is gone"), /*tear_off=*/false);
  Unpin();
  if (ok && listener != nullptr) listener->OnWritten(rank);
}

void SinkStream::OnCancel() { BeginEnd(absl::CancelledError("the sink is gone"), /*tear_off=*/false); }

void SinkStream::OnDone() {
  const std::shared_ptr<SinkStream> self = std::move(self_);  // may be the last reference
}

}  // namespace wsync::host
