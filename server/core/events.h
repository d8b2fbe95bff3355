// What happens to the coordinator and what it asks for: the vocabulary of the commit protocol, without any transport.
// Plain values. Times are on MonotonicNow()'s clock.
#ifndef WSYNC_SERVER_CORE_EVENTS_H_
#define WSYNC_SERVER_CORE_EVENTS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/hash.h"

namespace wsync {

using MemberId = uint64_t;  // one connection of one agent; a reconnect is a new member. Never reused.

struct ServedVersion {
  uint64_t version = 0;  // 0: none
  Hash128 digest;
  bool operator==(const ServedVersion&) const = default;
};

struct StageTimings {
  absl::Duration encode, transfer, check, apply, pause;
};

enum class MemberPhase : uint8_t { kIdle = 1, kConnect, kReceive, kStaged, kPause, kApply };
std::string_view MemberPhaseName(MemberPhase phase);

struct MemberInfo {
  std::string name;  // unique among live members
  std::string replica;
  int32_t rank = 0;
  int32_t replica_size = 1;
  std::string host;
  int64_t pid = 0;
  std::string backend;
  std::string software;
  ServedVersion serving;
  std::string device_id;  // GPU UUID; empty: not bound to one
  // Its engine is paused while it receives, and no network lies between it and the source: a data plane that takes many
  // multiprocessors disturbs nobody, and is faster.
  bool wide = false;
  int32_t group = 0;  // sinks that were ready when the last version began that it took part in; 0: none did
  // What only this process knows: made when it started, told to the coordinator alone, never shown. Zero: it has none.
  Hash128 incarnation;
  std::string peer;  // where its connection comes from, without the port; empty: unknown
};

// What the source itself sees of a sink of its session, whatever that says.
struct PeerProgress {
  bool connected = false;   // its end of the data plane was opened
  bool broke_off = false;   // and went before it had everything
  int64_t moved_bytes = 0;  // that were sent to it
};

// The plan as far as the coordinator cares.
struct PlanInfo {
  Hash128 catalog_fingerprint;
  Hash128 plan_hash;
  int64_t tensors = 0;
  int64_t quantized_tensors = 0;
  int64_t buckets = 0;
  int64_t source_bytes = 0;
  int64_t payload_bytes = 0;
  int64_t wire_bytes = 0;
};

// ---- events: what happened

namespace event {
struct CatalogRegistered {
  PlanInfo plan;
};
struct CatalogGone {
  std::string reason;
};
struct Publish {
  uint64_t version = 0;
};  // the trainer asks; answers are PublishDone actions
struct CallersGone {
  uint64_t version = 0;
  std::string who = "who published it hung up";  // and did what
};  // nobody waits for it any more: not released yet, its weights may be changing now
struct ContentChecked {
  uint64_t epoch = 0;
  uint64_t version = 0;
  absl::Status status;
  Hash128 digest;
};  // answer to the CheckContent of that epoch

// From the source's pipeline, tagged with the epoch of StartSource.
struct SourceReleased {
  uint64_t version = 0;
  Hash128 digest;
  absl::Duration encode;
  uint64_t epoch = 0;  // of any StartSource of this publish; tells a late answer to an aborted one. 0: unknown
};                     // once per version
struct SourceSent {
  uint64_t epoch = 0;
  uint64_t version = 0;
};  // every bucket is on the wire
struct SourceFailed {
  uint64_t epoch = 0;
  uint64_t version = 0;
  absl::Status status;
  bool version_lost = false;
};
// version_lost: the bytes cannot be sent again (non-finite weight, ring mode after release): no retry helps.

// From members.
struct Joined {
  MemberId member = 0;
  MemberInfo info;
};
struct ReadyChanged {
  MemberId member = 0;
  bool ready = false;
  std::string reason;
  Hash128 plan_hash;
  std::string engine;
  ServedVersion serving;
  bool torn = false;
};
struct HeartbeatSeen {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  MemberPhase phase = MemberPhase::kIdle;
  uint64_t received_bytes = 0;
  int64_t bucket = -1;
};
struct Staged {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  Hash128 digest;
  StageTimings timings;
};
struct Applied {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  Hash128 digest;
  StageTimings timings;
};
struct Failed {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  MemberPhase phase = MemberPhase::kIdle;
  absl::Status status;
  bool torn = false;
  int64_t bucket = -1;
};
struct Left {
  MemberId member = 0;
  std::string reason;
};  // said goodbye
struct Lost {
  MemberId member = 0;
  std::string reason;
};  // stream broke
struct Unfence {
  std::string name;  // of a member, present or not; empty: all
};                   // somebody asks; the answer is an Unfenced
struct Tick {};      // time passed
}  // namespace event

using Event = std::variant<event::CatalogRegistered, event::CatalogGone, event::Publish, event::CallersGone,
                           event::ContentChecked, event::SourceReleased, event::SourceSent, event::SourceFailed,
                           event::Joined, event::ReadyChanged, event::HeartbeatSeen, event::Staged, event::Applied,
                           event::Failed, event::Left, event::Lost, event::Unfence, event::Tick>;

// ---- actions: what to do about it

enum class ReplicaResult : uint8_t { kApplied = 1, kLeftOut, kTorn };
struct ReplicaOutcome {
  std::string replica;
  ReplicaResult result = ReplicaResult::kLeftOut;
  std::string reason;
  StageTimings timings;  // of its slowest sink
};
struct VersionReport {
  uint64_t version = 0;
  Hash128 digest;
  PlanInfo plan;
  std::vector<ReplicaOutcome> replicas;
  absl::Duration encode, released, staged, committed;  // all but encode since publish
  bool already_committed = false;
};

namespace action {
struct SendWelcome {
  MemberId member = 0;
  ServedVersion committed;
};
struct SendCatalog {
  MemberId member = 0;
};  // the current one, or 'none'
struct Refuse {
  MemberId member = 0;
  absl::Status status;
  bool retry = false;
};  // then the stream is closed
struct SendBegin {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  std::string session;
  int32_t rank = 0;
  int32_t world = 0;
  bool wide = false;  // as StartSource's
  int32_t group = 0;  // sinks that are ready now, whether they take part or not
};
struct SendCommit {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  Hash128 digest;
};
struct SendAbort {
  MemberId member = 0;
  uint64_t epoch = 0;
  uint64_t version = 0;
  absl::Status status;
};
struct Disconnect {
  MemberId member = 0;
  std::string reason;
};  // lost: close its stream if it is still open

// Encode `version` unless it is retained, and broadcast it to a session of `world` ranks (the source is rank 0).
// `wide`: MemberInfo::wide of all of them. Sink r of the session proves with peer_tokens[r - 1] that it is the one.
struct StartSource {
  uint64_t epoch = 0;
  uint64_t version = 0;
  std::string session;
  int32_t world = 0;
  bool encode = true;
  bool wide = false;
  std::vector<std::string> peer_tokens;
};
struct CancelSource {
  uint64_t epoch = 0;
  absl::Status reason;
  bool drop_version = false;
};  // of a StartSource or a CheckContent; drop: also stop encoding
struct CheckContent {
  uint64_t epoch = 0;  // of its own, as a StartSource's
  uint64_t version = 0;
};  // digest of the present weights, without touching the retained copy

struct PublishAccepted {
  uint64_t version = 0;
  uint64_t epoch = 0;
  int64_t replicas = 0;
};
struct PublishReleased {
  uint64_t version = 0;
  absl::Duration elapsed;
};
struct PublishDone {
  uint64_t version = 0;
  absl::Status status;
  VersionReport report;
};  // report valid when OK
struct Unfenced {
  absl::Status status;
  std::vector<std::string> names;
};
struct Log {
  enum Severity { kInfo, kWarn, kError } severity = kInfo;
  std::string text;
};  // also kept for status
}  // namespace action

using Action =
    std::variant<action::SendWelcome, action::SendCatalog, action::Refuse, action::SendBegin, action::SendCommit,
                 action::SendAbort, action::Disconnect, action::StartSource, action::CancelSource, action::CheckContent,
                 action::PublishAccepted, action::PublishReleased, action::PublishDone, action::Unfenced, action::Log>;
using Actions = std::vector<Action>;

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_EVENTS_H_
