// How one publish is ordered against streams of the training process: what it comes after, and what is marked behind
// its last read of the weights.
//
// Made with the publish, shared by all attempts at its version. Used from the publisher's encode thread, once a
// StartSource or CheckContent has it.
#ifndef WSYNC_SERVER_TRAINER_STREAM_ORDER_H_
#define WSYNC_SERVER_TRAINER_STREAM_ORDER_H_

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/backend/client_events.h"

namespace wsync {

class StreamOrder {
 public:
  // `marked` is called once, when the `released` event has been recorded.
  StreamOrder(std::optional<EventHandle> after, std::optional<EventHandle> released, std::function<void()> marked)
      : after_handle_(std::move(after)), released_handle_(std::move(released)), marked_(std::move(marked)) {}

  // What is wrong with the handles as far as that shows without the device. Any thread, before the order is used.
  absl::Status Check(const Memory& memory) const {
    absl::Status status;
    if (after_handle_.has_value()) status.Update(memory.CheckEvent(*after_handle_));
    if (released_handle_.has_value()) status.Update(memory.CheckEvent(*released_handle_));
    return status;
  }

  // Begins an attempt. Errors are OpenEvent's. FAILED_PRECONDITION: the weights were given back by an earlier attempt.
  absl::Status Begin(ClientEvents* events, Memory& memory);
  // What the first reads come after; null: nothing.
  const CompletionPtr& start() const { return start_; }
  // Marks the `released` event behind these encodes, which are all that read the weights, and says so.
  absl::Status MarkReleased(absl::Span<const CompletionPtr> encodes);
  // OK once the start has come. DEADLINE_EXCEEDED past `limit`, or what `called_off` says first: give it up then.
  absl::Status AwaitStart(absl::Duration limit, const std::function<absl::Status()>& called_off) const;
  // What was ordered after the start fails with `why`, soon.
  void GiveUp(ClientEvents* events, const absl::Status& why);

 private:
  const std::optional<EventHandle> after_handle_;
  const std::optional<EventHandle> released_handle_;
  const std::function<void()> marked_;
  std::shared_ptr<StreamEvent> after_, released_;
  CompletionPtr start_;
  bool was_marked_ = false;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_STREAM_ORDER_H_
