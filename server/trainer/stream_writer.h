// The sending half of a gRPC server stream: queued messages one at a time, then one Finish.
//
// Thread-safe. A reactor owns one and forwards OnWriteDone; it must live until OnDone, which comes only after Finish.
// Start* operations are called with the lock held, which keeps them in order: gRPC never runs a reaction inside one.
#ifndef WSYNC_SERVER_TRAINER_STREAM_WRITER_H_
#define WSYNC_SERVER_TRAINER_STREAM_WRITER_H_

#include <grpcpp/support/status.h>

#include <deque>
#include <functional>
#include <optional>
#include <utility>

#include "server/core/sync.h"

namespace wsync {

template <typename Message>
class StreamWriter {
 public:
  // How the reactor writes, finishes, and does both at once, which costs the peer one wake instead of two. What is
  // written stays in place until it is, or until the writer goes.
  struct Operations {
    std::function<void(const Message*)> write;
    std::function<void(const grpc::Status&)> finish;
    std::function<void(const Message*, const grpc::Status&)> write_and_finish;
  };
  explicit StreamWriter(Operations operations) : operations_(std::move(operations)) {}

  // Sends after everything queued before. False: closed, or `limit` messages wait already (the peer does not read).
  bool Push(Message message, size_t limit) {
    MutexLock lock(&mu_);
    if (closing_.has_value() || queue_.size() >= limit) return false;
    queue_.push_back(std::move(message));
    Advance();
    return true;
  }
  // Finishes once everything queued was sent. The first status counts.
  void Close(const grpc::Status& status) {
    MutexLock lock(&mu_);
    if (!closing_.has_value()) closing_ = status;
    Advance();
  }
  // Push and Close in one.
  void PushLast(Message message, const grpc::Status& status) {
    MutexLock lock(&mu_);
    if (closing_.has_value()) return;
    queue_.push_back(std::move(message));
    closing_ = status;
    Advance();
  }
  // The peer is gone: drops what is queued and finishes.
  void Break(const grpc::Status& status) {
    MutexLock lock(&mu_);
    DropQueue();
    if (!closing_.has_value()) closing_ = status;
    Advance();
  }
  void Written(bool ok) {
    MutexLock lock(&mu_);
    writing_ = false;
    queue_.pop_front();
    if (!ok) {
      DropQueue();
      if (!closing_.has_value()) closing_ = grpc::Status(grpc::StatusCode::CANCELLED, "the peer is gone");
    }
    Advance();
  }
  // Runs `operation` (such as StartRead) unless the stream is finished: after that the reactor may be gone.
  void IfOpen(const std::function<void()>& operation) {
    MutexLock lock(&mu_);
    if (!finished_) operation();
  }
  bool Idle() const {
    MutexLock lock(&mu_);
    return queue_.empty() && !closing_.has_value();
  }
  bool Closed() const {
    MutexLock lock(&mu_);
    return closing_.has_value();
  }

 private:
  void DropQueue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!finished_) queue_.resize(writing_ ? 1 : 0);  // else gRPC may be reading the last one
  }
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_) return;
    if (queue_.size() == 1 && closing_.has_value()) {
      finished_ = true;
      operations_.write_and_finish(&queue_.front(), *closing_);
    } else if (!queue_.empty()) {
      writing_ = true;
      operations_.write(&queue_.front());  // stays in place until Written
    } else if (closing_.has_value()) {
      finished_ = true;
      operations_.finish(*closing_);
    }
  }

  const Operations operations_;
  mutable Mutex mu_;
  std::deque<Message> queue_ ABSL_GUARDED_BY(mu_);  // front: being written while writing_
  std::optional<grpc::Status> closing_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_STREAM_WRITER_H_
