// The coordinator's mind: membership, rounds, commit decisions. (now, event) -> actions, nothing else.
//
// Pure: no clock, no I/O, no threads, no randomness (what is not in an event comes from injected functions). One thread
// of the shell feeds it events and carries out its actions, in order (server/trainer/control_loop). The same object
// runs in the simulator.
//
// Rules it keeps (proto/README.md): versions only grow; all replicas of a round switch or none (policy), those left out
// serve what they have until they took a complete version; every wait has a deadline; messages of an old epoch change
// nothing. What a member says is believed as far as it can be checked: of itself, and not against others; who costs two
// versions in a row is fenced (fences.h).
//
// What it relies on:
// - Of the shell: a member's messages arrive in order, and Tick comes soon after NextDeadline(). A StartSource with
//   encode for the version that is being encoded already means: go on. PublishDone answers all who wait for the
//   version.
// - Of a sink, for a version to reach it: it gives up what it has not been told to commit when its stream ends; it
//   answers a commit with Applied or Failed, however late (until then it is asked for nothing else), and says Ready
//   again when what it serves changed without being asked on this stream. Torn is for live destinations; a failed
//   transport is UNAVAILABLE, CANCELLED, ABORTED or DEADLINE_EXCEEDED in phase connect or receive, damaged bytes are
//   DATA_LOSS: both are tried again.
#ifndef WSYNC_SERVER_CORE_COORDINATOR_H_
#define WSYNC_SERVER_CORE_COORDINATOR_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/core/status.h"

namespace wsync {

struct CoordinatorOptions {
  std::string job = "default";
  int32_t quorum = 0;  // 0: policy `all`; k > 0: policy `quorum: k`
  int32_t min_replicas = 1;
  absl::Duration min_replicas_wait = absl::Seconds(5);
  absl::Duration heartbeat_timeout = absl::Seconds(3);
  // Either ends a wait for a live peer that makes no progress, which must not cost the trainer more than 10 s in all:
  // 2 s are left for breaking off and for answering on a machine short of processors.
  absl::Duration stage_timeout = absl::Seconds(8);  // plus wire_bytes / min_rate
  double min_rate_bytes_per_second = 50e6;
  absl::Duration apply_timeout = absl::Seconds(8);
  int32_t event_history = 100;
  bool source_retains = true;  // source mode `full`: a committed version can be sent again
  std::string backend = "host";
  std::function<std::string()> new_session_token;  // unguessable in the daemon, counted in tests
  // What one sink proves with that it is its rank of this session; null: with the session's token.
  std::function<std::string(const std::string& session)> new_rank_token;
  // What the source sees of the sinks of this epoch, by rank; none: its data plane cannot tell. Null: likewise.
  std::function<std::optional<std::vector<PeerProgress>>(uint64_t epoch)> peers;
};

class Coordinator {
 public:
  Coordinator(CoordinatorOptions options, absl::Time now);
  ~Coordinator();

  // Everything that must be done because of `event`, in order. Never fails: nonsense from a peer becomes a Refuse, a
  // Log, or nothing.
  Actions Step(absl::Time now, const Event& event);

  // When a Tick is due at the latest: the nearest deadline.
  absl::Time NextDeadline() const;

  StatusSnapshot Snapshot(absl::Time now) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_COORDINATOR_H_
