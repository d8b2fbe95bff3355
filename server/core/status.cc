#include "server/core/status.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

namespace wsync {
namespace {

std::string Because(const std::string& error) { return error.empty() ? "" : absl::StrCat(": ", error); }

// What is wrong with one member; empty: nothing. One that takes part in a round is being taken care of.
std::string Problem(const MemberStatus& member, const ServedVersion& committed) {
  const std::string who = absl::StrCat(member.info.name, " (replica ", member.info.replica, ")");
  if (member.state == "lost") return absl::StrCat(who, " is lost", Because(member.last_error));
  if (member.state == "fenced") return absl::StrCat(who, " is ", member.last_error);
  if (member.state == "torn") return absl::StrCat(who, " is torn", Because(member.last_error));
  if (member.state == "syncing" || committed.version == 0 || member.serving == committed) return "";
  if (member.serving.version == committed.version) {
    return absl::StrFormat("%s serves other content as version %d", who, committed.version);
  }
  if (member.serving.version == 0) {
    return absl::StrFormat("%s serves no version, committed is %d%s", who, committed.version,
                           Because(member.last_error));
  }
  if (member.serving.version > committed.version) {
    return absl::StrFormat("%s says it serves version %d, which was never committed here; committed is %d", who,
                           member.serving.version, committed.version);
  }
  return absl::StrFormat("%s serves version %d, committed is %d%s", who, member.serving.version, committed.version,
                         Because(member.last_error));
}

int32_t UsableReplicas(const StatusSnapshot& snapshot) {
  std::map<std::string, int32_t> missing;  // by replica: ranks that are not usable
  for (const MemberStatus& member : snapshot.members) {
    int32_t& left = missing.try_emplace(member.info.replica, member.info.replica_size).first->second;
    if (member.state != "lost" && member.state != "waiting" && member.state != "fenced") --left;
  }
  int32_t usable = 0;
  for (const auto& [replica, left] : missing) usable += left <= 0;
  return usable;
}

std::string RoundText(const RoundStatus& round) {
  if (round.participants == 0) return absl::StrFormat("version %d: %s", round.version, round.phase);
  return absl::StrFormat("version %d%s: %s, %d of %d replicas staged, %d applied, %.1f s", round.version,
                         round.catch_up ? " (catch-up)" : "", round.phase, round.staged, round.participants,
                         round.applied, absl::ToDoubleSeconds(round.age));
}

}  // namespace

std::string_view SyncStateName(SyncState state) {
  switch (state) {
    case SyncState::kInSync:
      return "in sync";
    case SyncState::kSyncing:
      return "syncing";
    case SyncState::kDegraded:
      return "degraded";
    case SyncState::kEmpty:
      return "empty";
  }
  return "unknown";
}

void Judge(StatusSnapshot& snapshot) {
  if (snapshot.committed.version == 0 && !snapshot.round.has_value()) {
    snapshot.state = SyncState::kEmpty;
    snapshot.reason =
        snapshot.plan.has_value() ? "no version was published yet" : "no trainer has registered a catalog";
    return;
  }
  int problems = 0;
  for (const MemberStatus& member : snapshot.members) {
    const std::string problem = Problem(member, snapshot.committed);
    if (!problem.empty() && ++problems == 1) snapshot.reason = problem;
  }
  const int32_t usable = UsableReplicas(snapshot);
  if (usable < snapshot.min_replicas && problems == 0) {  // else it is what comes of those, and no other problem
    problems = 1;
    snapshot.reason = absl::StrFormat("%d of %d needed replicas are ready", usable, snapshot.min_replicas);
  }
  if (problems > 0) {
    snapshot.state = SyncState::kDegraded;
    if (problems > 1)
      absl::StrAppend(&snapshot.reason, " (and ", problems - 1, problems == 2 ? " more problem)" : " more problems)");
  } else if (snapshot.round.has_value()) {
    snapshot.state = SyncState::kSyncing;
    snapshot.reason = RoundText(*snapshot.round);
  } else {
    snapshot.state = SyncState::kInSync;
    snapshot.reason = absl::StrFormat("%d %s version %d", usable, usable == 1 ? "replica serves" : "replicas serve",
                                      snapshot.committed.version);
  }
}

}  // namespace wsync
