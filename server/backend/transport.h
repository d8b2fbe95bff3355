// The data plane of one session: a fixed set of ranks, rank 0 sends, all others receive the same bytes.
//
// Calls match by order: the k-th Broadcast of every rank is the same broadcast, with the same number of bytes. A
// session serves any number of them, version after version. To add a transport, implement this class and pass
// tests/backend's contract suite. Connect, Broadcast: one thread. Cancel, moved_bytes: any thread.
//
// Whether a transport notices by itself that another rank is gone depends on what carries it: gRPC streams break, NCCL
// over NVLink hears nothing. Whoever opens a session watches its ranks (the coordinator's heartbeats) and calls Cancel.
#ifndef WSYNC_SERVER_BACKEND_TRANSPORT_H_
#define WSYNC_SERVER_BACKEND_TRANSPORT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/backend/completion.h"
#include "server/core/events.h"

namespace wsync {

struct SessionSpec {
  std::string token;  // opens the session for this rank; secret, never logged
  int32_t rank = 0;
  int32_t world = 1;
  std::string root_address;  // host:port of rank 0's data plane, where the backend needs one
  bool wide = false;         // may take many multiprocessors of every rank's GPU; the same for all ranks
  // Rank 0: the tokens of ranks 1, 2, ..., each of its rank alone. Empty: all have this rank's.
  std::vector<std::string> peer_tokens;
};

class Transport {
 public:
  virtual ~Transport() = default;  // cancels what is pending and waits until no one touches the callers' memory
  // Opens the session: returns when this rank can broadcast. DEADLINE_EXCEEDED names the ranks that did not come, where
  // the transport can know. Once.
  virtual absl::Status Connect(absl::Time deadline) = 0;
  // Rank 0: sends data[0, bytes) once `after` is done; complete when the memory may be overwritten. Others: receives
  // into data[0, bytes), starting after `after`; complete when all bytes are there. Fails when `after` failed, on
  // Cancel, or when a rank is seen to be gone that did not have all of it yet (naming it); may then have delivered part
  // of its bytes. A broadcast that failed ends the session: what is pending and to come fails with the same error, and
  // on the other ranks with one of their own, at the latest when they are cancelled. The memory must live until
  // completion or destruction of the transport.
  virtual CompletionPtr Broadcast(std::byte* data, int64_t bytes, CompletionPtr after) = 0;
  // Fails everything pending and to come with `why`, soon. Idempotent.
  virtual void Cancel(const absl::Status& why) = 0;
  // Bytes moved so far by this rank (rank 0: by the slowest peer), for progress reports.
  virtual int64_t moved_bytes() const = 0;
  // Rank 0: what it sees of ranks 1, 2, ...; none where the transport cannot tell. Any thread.
  virtual std::optional<std::vector<PeerProgress>> peers() const { return std::nullopt; }
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_TRANSPORT_H_
