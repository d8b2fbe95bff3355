#include "server/rollout/member_stream.h"

#include <utility>

namespace wsync {

MemberStream::MemberStream(std::shared_ptr<grpc::Channel> channel, Handlers handlers)
    : channel_(std::move(channel)), stub_(v1::Coordinator::NewStub(channel_)), handlers_(std::move(handlers)) {
  stub_->async()->Member(&context_, this);
  // Writes come from outside of gRPC's callbacks: the hold keeps OnDone away until Release.
  AddHold();
  StartRead(&incoming_);
  StartCall();
}

MemberStream::~MemberStream() {
  Cancel();
  MutexLock lock(&latch_->mu);
  while (!latch_->done) latch_->changed.Wait(&latch_->mu);
}

void MemberStream::Send(v1::MemberMessage message) {
  if (released_) return;
  Next next;
  {
    MutexLock lock(&mu_);
    queue_.push_back(std::move(message));
    next = NextWrite();
  }
  Start(next);
}

void MemberStream::Close() {
  if (released_) return;
  Next next;
  {
    MutexLock lock(&mu_);
    closing_ = true;
    next = NextWrite();
  }
  Start(next);
}

void MemberStream::Release() {
  if (std::exchange(released_, true)) return;
  RemoveHold();
}

void MemberStream::Cancel() {
  if (released_) return;
  context_.TryCancel();
  Release();
}

MemberStream::Next MemberStream::NextWrite() {
  if (writing_ || closed_) return Next::kNothing;
  if (!queue_.empty()) {
    outgoing_ = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    return Next::kWrite;
  }
  if (!closing_) return Next::kNothing;
  closed_ = true;
  return Next::kClose;
}

// Without the lock: gRPC may call back from within.
void MemberStream::Start(Next next) {
  if (next == Next::kWrite) StartWrite(&outgoing_);
  if (next == Next::kClose) StartWritesDone();
}

void MemberStream::OnReadDone(bool ok) {
  if (!ok) return handlers_.on_end();
  handlers_.on_message(std::exchange(incoming_, {}));
  StartRead(&incoming_);
}

void MemberStream::OnWriteDone(bool ok) {
  Next next;
  {
    MutexLock lock(&mu_);
    writing_ = false;
    if (!ok) closed_ = true;  // the read side will say that the call has ended
    next = NextWrite();
  }
  Start(next);
}

void MemberStream::OnDone(const grpc::Status& status) {
  const std::shared_ptr<Latch> latch = latch_;
  handlers_.on_done(status);
  MutexLock lock(&latch->mu);  // from here on *this may be gone
  latch->done = true;
  latch->changed.SignalAll();
}

}  // namespace wsync
