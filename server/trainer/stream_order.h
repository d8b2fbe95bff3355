// What one publish comes after: a point of a stream of the training process.
//
// Made with the publish, shared by all attempts at its version. Used from the publisher's encode thread, once a
// StartSource or CheckContent has it.
#ifndef WSYNC_SERVER_TRAINER_STREAM_ORDER_H_
#define WSYNC_SERVER_TRAINER_STREAM_ORDER_H_

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/client_events.h"

namespace wsync {

class StreamOrder {
 public:
  explicit StreamOrder(EventHandle after) : handle_(std::move(after)) {}

  // What is wrong with the handle as far as that shows without the device. Any thread, before the order is used.
  absl::Status Check(const Memory& memory) const { return memory.CheckEvent(handle_); }

  // Begins an attempt. Errors are OpenEvent's.
  absl::Status Open(ClientEvents* events, Memory& memory);
  // OK once the stream has come, and the weights may be read. DEADLINE_EXCEEDED past `limit`, or what `called_off` says
  // first. REQUIRES: Open succeeded.
  absl::Status AwaitStart(absl::Duration limit, const std::function<absl::Status()>& called_off) const;

 private:
  const EventHandle handle_;
  std::shared_ptr<StreamEvent> after_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_STREAM_ORDER_H_
