// What `wsync status` shows, as plain data. Made by Coordinator::Snapshot.
#ifndef WSYNC_SERVER_CORE_STATUS_H_
#define WSYNC_SERVER_CORE_STATUS_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "server/core/events.h"

namespace wsync {

enum class SyncState : uint8_t { kInSync = 1, kSyncing, kDegraded, kEmpty };
std::string_view SyncStateName(SyncState state);  // "in sync", "syncing", "degraded", "empty"

struct MemberStatus {
  MemberInfo info;
  std::string engine;
  std::string state;  // "ready", "syncing", "waiting", "torn", "fenced", "lost"
  MemberPhase phase = MemberPhase::kIdle;
  ServedVersion serving;
  uint64_t lag = 0;  // committed version - serving version
  absl::Duration last_seen;
  double received_fraction = 0;
  std::string last_error;
};

struct RoundStatus {
  uint64_t version = 0;
  std::string phase;  // "waiting" (for replicas), "checking" (content of a committed version), "transfer", "apply"
  absl::Duration age;
  bool catch_up = false;
  int64_t participants = 0;  // replicas
  int64_t staged = 0;
  int64_t applied = 0;
};

struct StatusEvent {
  absl::Time when;  // monotonic; the shell turns it into wall-clock time
  action::Log::Severity severity = action::Log::kInfo;
  std::string text;
};

struct StatusSnapshot {
  std::string job;
  uint64_t epoch = 0;
  std::string policy;  // "all", "quorum: 2"
  int32_t min_replicas = 0;
  std::string backend;
  SyncState state = SyncState::kEmpty;
  std::string reason;  // one sentence
  std::optional<PlanInfo> plan;
  ServedVersion committed;
  std::optional<VersionReport> last_report;
  absl::Duration last_report_age;
  std::optional<RoundStatus> round;
  std::vector<MemberStatus> members;  // live ones, and lost ones until their replica is back; sorted by replica, rank
  std::vector<StatusEvent> events;    // oldest first
};

// Fills in `state` and `reason` from all the rest.
void Judge(StatusSnapshot& snapshot);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_STATUS_H_
