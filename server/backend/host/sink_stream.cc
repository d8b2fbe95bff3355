#include "server/backend/host/sink_stream.h"

#include <utility>

#include "server/backend/host/data_chunk.h"
#include "server/backend/host/grpc_status.h"

namespace wsync::host {

std::shared_ptr<SinkStream> SinkStream::New(grpc::CallbackServerContext* context) {
  std::shared_ptr<SinkStream> stream(new SinkStream(context));
  MutexLock lock(&stream->mu_);
  stream->self_ = stream;
  return stream;
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
  context_->AddInitialMetadata(kAdmittedKey, "1");
  StartSendInitialMetadata();
}

void SinkStream::Write(grpc::ByteBuffer chunk) {
  const grpc::ByteBuffer* message = nullptr;
  {
    MutexLock lock(&mu_);
    if (ending_) return;  // the listener was or will be told that the stream is gone
    ++pins_;              // until OnWriteDone
    chunk_.Swap(&chunk);
    message = &chunk_;
  }
  StartWrite(message);
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
  grpc::ByteBuffer written;  // dropped without the lock: it may be the last reference to memory
  std::shared_ptr<SinkStreamListener> listener;
  int32_t rank = 0;
  {
    MutexLock lock(&mu_);
    written.Swap(&chunk_);
    listener = listener_;
    rank = rank_;
  }
  written.Clear();
  if (!ok) BeginEnd(absl::UnavailableError("the sink is gone"), /*tear_off=*/false);
  Unpin();
  if (ok && listener != nullptr) listener->OnWritten(rank);
}

void SinkStream::OnCancel() { BeginEnd(absl::CancelledError("the sink is gone"), /*tear_off=*/false); }

void SinkStream::OnDone() {
  std::shared_ptr<SinkStream> self;  // may be the last reference
  MutexLock lock(&mu_);
  self = std::move(self_);
}

}  // namespace wsync::host
