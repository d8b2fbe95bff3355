#include "server/backend/host/source_session.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/backend/host/data_chunk.h"
#include "server/backend/host/handoff.h"

namespace wsync::host {

struct SourceSession::SliceRef {
  std::shared_ptr<SourceSession> session;
  int32_t rank;
  SendPtr send;
  int64_t bytes;
  Handoff handoff;
};

SourceSession::SourceSession(int32_t world, WorkerPool* pool) : world_(world), pool_(pool), sinks_(world - 1) {}

absl::Status SourceSession::Admit(int32_t rank, const std::shared_ptr<SinkStream>& stream) {
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return absl::NotFoundError("the session is over");
    if (rank < 1 || rank >= world_) {
      return absl::PermissionDeniedError(absl::StrCat("the session has sinks 1 to ", world_ - 1, ", not ", rank));
    }
    Sink& sink = sinks_[rank - 1];
    if (sink.admitted) {
      return absl::AlreadyExistsError(absl::StrCat("rank ", rank, " has joined this session before"));
    }
    sink.admitted = true;
    sink.stream = stream;
    changed_.SignalAll();
  }
  stream->Attach(shared_from_this(), rank);
  Pump(rank);
  return absl::OkStatus();
}

absl::Status SourceSession::WaitConnected(absl::Time deadline) {
  MutexLock lock(&mu_);
  const auto missing = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    std::vector<int32_t> ranks;
    for (int32_t rank = 1; rank < world_; ++rank) {
      if (!sinks_[rank - 1].admitted) ranks.push_back(rank);
    }
    return ranks;
  };
  bool in_time = true;
  while (why_.ok() && !missing().empty() && in_time) in_time = changed_.WaitUntil(&mu_, deadline);
  if (!why_.ok()) return why_;
  if (missing().empty()) return gone_;
  return absl::DeadlineExceededError(absl::StrCat(
      "data plane: rank ", absl::StrJoin(missing(), ", rank "),
      " did not open its stream before the deadline; is the sink running, and can it reach this host's data plane?"));
}

CompletionPtr SourceSession::Broadcast(const std::byte* data, int64_t bytes, const CompletionPtr& after) {
  auto send = std::make_shared<Send>();
  send->data = data;
  send->bytes = bytes;
  absl::Status gone;
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return HostCompletion::Finished(why_);
    gone = gone_;
    send->sequence = next_sequence_++;
    send->sinks_left = world_ - 1;
    sends_.push_back(send);
  }
  if (!gone.ok()) Cancel(gone);
  RunAfter(after, [self = shared_from_this(), send](const absl::Status& result) { self->Ready(send, result); });
  return send->completion;
}

void SourceSession::Ready(const SendPtr& send, const absl::Status& after) {
  // Sinks wait for this broadcast and nothing can be sent in its place: the session is over.
  if (!after.ok()) return Cancel(after);
  Finished finished;
  {
    MutexLock lock(&mu_);
    send->ready = true;
    finished = TakeFinished();
  }
  FinishAll(finished);
  if (world_ == 1) return;
  pool_->Post([self = shared_from_this()] {
    for (int32_t rank = 1; rank < self->world_; ++rank) self->Pump(rank);
  });
}

SourceSession::Send* SourceSession::SendAt(uint64_t sequence) {
  if (sequence >= next_sequence_) return nullptr;
  return sends_[sequence - (next_sequence_ - sends_.size())].get();
}

void SourceSession::Pass(Sink& sink, Send& send) {
  --send.sinks_left;
  ++sink.at;
  sink.offset = 0;
}

// The next chunk of a sink, if it may have one now.
bool SourceSession::TakeChunk(int32_t rank, SendPtr* send, int64_t* offset, int64_t* bytes) {
  Finished finished;
  bool taken = false;
  {
    MutexLock lock(&mu_);
    Sink& sink = sinks_[rank - 1];
    if (!sink.admitted || sink.gone || sink.writing || !why_.ok()) return false;
    Send* head = SendAt(sink.at);
    while (head != nullptr && head->ready && sink.offset == head->bytes) {  // empty broadcasts need no chunk
      Pass(sink, *head);
      head = SendAt(sink.at);
    }
    if (head != nullptr && head->ready) {
      *send = sends_[sink.at - (next_sequence_ - sends_.size())];
      *offset = sink.offset;
      *bytes = std::min(kMaxChunkBytes, head->bytes - sink.offset);
      sink.offset += *bytes;
      sink.writing = true;
      ++head->slices;
      ++slices_;
      taken = true;
    }
    finished = TakeFinished();
  }
  FinishAll(finished);
  return taken;
}

void SourceSession::Pump(int32_t rank) {
  SendPtr send;
  int64_t offset = 0, bytes = 0;
  if (!TakeChunk(rank, &send, &offset, &bytes)) return;
  std::shared_ptr<SinkStream> stream;
  {
    MutexLock lock(&mu_);
    stream = sinks_[rank - 1].stream;
  }
  grpc::ByteBuffer chunk = MakeChunk(rank, send, offset, bytes);
  if (stream != nullptr) stream->Write(std::move(chunk));
}

grpc::ByteBuffer SourceSession::MakeChunk(int32_t rank, const SendPtr& send, int64_t offset, int64_t bytes) {
  auto* ref = new SliceRef{shared_from_this(), rank, send, bytes, {}};
  const grpc::Slice payload(
      const_cast<std::byte*>(send->data + offset), static_cast<size_t>(bytes),  // gRPC only reads it
      [](void* arg) {
        const std::unique_ptr<SliceRef> released(static_cast<SliceRef*>(arg));
        released->handoff.Take();
        released->session->Released(released->rank, released->send, released->bytes);
      },
      ref);
  ref->handoff.Give();
  return EncodeChunk(send->sequence, offset, payload);
}

void SourceSession::Released(int32_t rank, const SendPtr& send, int64_t bytes) {
  Finished finished;
  {
    MutexLock lock(&mu_);
    --send->slices;
    sinks_[rank - 1].moved_bytes += bytes;
    finished = TakeFinished();
  }
  FinishAll(finished);
  MutexLock lock(&mu_);  // after the completions: who waits for the release may free what they use
  --slices_;
  changed_.SignalAll();
}

void SourceSession::OnWritten(int32_t rank) {
  Finished finished;
  {
    MutexLock lock(&mu_);
    Sink& sink = sinks_[rank - 1];
    sink.writing = false;
    Send* head = sink.gone || !why_.ok() ? nullptr : SendAt(sink.at);
    if (head != nullptr && sink.offset == head->bytes) Pass(sink, *head);
    finished = TakeFinished();
  }
  FinishAll(finished);
  Pump(rank);
}

void SourceSession::OnGone(int32_t rank) {
  std::shared_ptr<SinkStream> stream;
  const absl::Status gone =
      absl::UnavailableError(absl::StrCat("data plane: rank ", rank, " is gone: its stream broke off"));
  Finished finished;
  bool early = false;
  {
    MutexLock lock(&mu_);
    Sink& sink = sinks_[rank - 1];
    stream = std::move(sink.stream);
    sink.gone = true;
    if (!why_.ok()) return;
    // Of a sink that leaves with everything we may hear before gRPC says that the last chunk was written. Whether it
    // really has it is the sink's to say.
    Send* head = sink.writing ? SendAt(sink.at) : nullptr;
    if (head != nullptr && sink.offset == head->bytes) Pass(sink, *head);
    early = sink.at != next_sequence_;
    sink.broke_off = early;
    if (!early) gone_.Update(gone);
    finished = TakeFinished();
  }
  FinishAll(finished);
  if (early) Cancel(gone);
}

void SourceSession::Cancel(const absl::Status& why) {
  Finished finished;
  std::vector<std::shared_ptr<SinkStream>> streams;
  {
    MutexLock lock(&mu_);
    if (!why_.ok()) return;
    why_ = why;
    for (const SendPtr& send : sends_) {
      send->sinks_left = 0;
      send->ready = true;
    }
    for (const Sink& sink : sinks_) {
      if (sink.stream != nullptr) streams.push_back(sink.stream);
    }
    finished = TakeFinished();
    changed_.SignalAll();
  }
  FinishAll(finished);
  if (streams.empty()) return;
  // Ending a stream calls gRPC, and Cancel may run in a callback that must not: a failed `after`'s.
  pool_->Post([streams, why] {
    for (const auto& stream : streams) stream->End(why);
  });
}

SourceSession::Finished SourceSession::TakeFinished() {
  Finished finished{.sends = {}, .result = why_};
  while (!sends_.empty() && sends_.front()->ready && sends_.front()->sinks_left == 0 && sends_.front()->slices == 0) {
    finished.sends.push_back(std::move(sends_.front()));
    sends_.pop_front();
  }
  return finished;
}

void SourceSession::FinishAll(const Finished& finished) {
  for (const SendPtr& send : finished.sends) send->completion->Finish(finished.result);
}

void SourceSession::WaitReleased() {
  MutexLock lock(&mu_);
  while (slices_ > 0) changed_.Wait(&mu_);
}

std::vector<PeerProgress> SourceSession::peers() {
  MutexLock lock(&mu_);
  std::vector<PeerProgress> peers;
  for (const Sink& sink : sinks_) peers.push_back({sink.admitted, sink.broke_off, sink.moved_bytes});
  return peers;
}

int64_t SourceSession::moved_bytes() {
  MutexLock lock(&mu_);
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const Sink& sink : sinks_) least = sink.gone ? least : std::min(least, sink.moved_bytes);
  return least == std::numeric_limits<int64_t>::max() ? 0 : least;
}

}  // namespace wsync::host
