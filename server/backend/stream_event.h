// An event of a client process, which says how far a stream of that process is.
//
// The client owns the event, records it and lends it by handle; a thread of the agent waits until it has come before it
// touches the client's memory. No stream of the agent ever waits for it: what a GPU waits for cannot be called off, and
// the event of a process that died never comes. Used from one thread; completions from any.
#ifndef WSYNC_SERVER_BACKEND_STREAM_EVENT_H_
#define WSYNC_SERVER_BACKEND_STREAM_EVENT_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/completion.h"

namespace wsync {

struct EventHandle {
  std::string handle;       // 64 bytes, of cudaIpcGetEventHandle
  std::string device_uuid;  // as CudaIpcHandle's
};

class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
  // The point that the client recorded last, before it said so: to be asked and waited for on the host, and not to be
  // passed on as `after`.
  virtual CompletionPtr Recorded() = 0;
};

// OK once the client's stream has come to the point that it recorded last. What `called_off` says, if that is not OK
// before (null: nothing ends the wait); DEADLINE_EXCEEDED with the text `late` past `limit`; the device's error. Looks
// every few microseconds at first, and a thousand times a second in the end.
absl::Status AwaitRecorded(StreamEvent& event, absl::Duration limit, const std::function<absl::Status()>& called_off,
                           const std::string& late);

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_STREAM_EVENT_H_
