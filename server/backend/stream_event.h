// An event of a client process: it puts that process's stream and the agent's work in order, and no host waits.
//
// The client owns the event and lends it by handle. It goes one of two ways: the client records it, and the agent's
// work comes after that point (Recorded); or the agent marks what it has started (Mark), and the client's stream waits
// for it. Since the owner can record its event again, a client whose agent died can always end the wait of its stream;
// since the agent can mark it, so can an agent whose client died or never got there (GiveUp). Used from one thread;
// completions from any.
#ifndef WSYNC_SERVER_BACKEND_STREAM_EVENT_H_
#define WSYNC_SERVER_BACKEND_STREAM_EVENT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/backend/completion.h"

namespace wsync {

struct EventHandle {
  std::string handle;       // 64 bytes, of cudaIpcGetEventHandle
  std::string device_uuid;  // as CudaIpcHandle's
};

class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
  // The point that the client recorded last, before it said so: to be passed on as `after`. Asked whether it has come,
  // it does not block.
  virtual CompletionPtr Recorded() = 0;
  // Ends the wait for what the client recorded: its completion fails with `why`, and what came after it on the device
  // goes on, and leaves live memory alone as it must after a failure. The event is of no use from then on.
  virtual void GiveUp(const absl::Status& why) = 0;
  // Marks the point at which all of `after` are done; returns at once. Streams of the client that begin to wait for the
  // event after this wait until then.
  virtual absl::Status Mark(absl::Span<const CompletionPtr> after) = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_STREAM_EVENT_H_
