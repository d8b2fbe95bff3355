// Who is in the group: the coordinator's table of members and replicas, their readiness and their last sign of life.
// Pure bookkeeping, driven by Coordinator; it decides nothing but who may join and who is silent for too long.
#ifndef WSYNC_SERVER_CORE_GROUP_H_
#define WSYNC_SERVER_CORE_GROUP_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/core/status.h"

namespace wsync {

struct Member {
  MemberId id = 0;
  MemberInfo info;  // info.serving is kept current
  bool ready = false;
  std::string reason = "it has not said yet whether it is ready";  // when not ready
  std::string engine;
  bool torn = false;
  absl::Time last_seen;
  bool forgiven = false;  // its silence since then, because we may have missed its heartbeats
  event::HeartbeatSeen progress;
  std::string last_error;
  std::string fenced;                    // why the job goes on without it; empty: it does not
  ServedVersion claim;                   // the last version that it said it serves, engine or not
  uint64_t round = 0;                    // epoch of the round it works on; 0: none
  std::optional<ServedVersion> applies;  // a commit was sent for this and the answer is outstanding
  bool catalog_due = false;              // a newer catalog waits until it is out of its round
};

class Group {
 public:
  explicit Group(absl::Duration heartbeat_timeout) : heartbeat_timeout_(heartbeat_timeout) {}

  struct Verdict {
    absl::Status status;             // not OK: refuse
    bool retry = false;              // the obstacle may go away by itself
    std::optional<MemberId> former;  // the live member that the newcomer replaces
  };
  // More than any job has; a step looks at each of them.
  static constexpr size_t kMaxMembers = 4096;
  // More than any host has GPUs, also where several hosts share one address: one of them cannot fill the table.
  static constexpr size_t kMaxMembersOfPeer = 256;
  // May a member of this description join? ALREADY_EXISTS: its name or its place is taken by a live member; it replaces
  // an earlier connection of the same incarnation, or one that was silent for half the timeout. RESOURCE_EXHAUSTED: too
  // many have joined, at all or from there.
  Verdict Judge(absl::Time now, const MemberInfo& info) const;

  Member& Add(absl::Time now, MemberId id, const MemberInfo& info);
  void Remove(MemberId id);  // said goodbye
  void Lose(absl::Time now, MemberId id,
            const std::string& last_error);  // listed as lost until somebody takes its place
  Member* Find(MemberId id);
  std::map<MemberId, Member>& members() { return members_; }
  const std::map<MemberId, Member>& members() const { return members_; }

  // Members whose heartbeat timeout passed, and when the next one's does.
  std::vector<MemberId> Silent(absl::Time now) const;
  absl::Time NextSilence() const;
  // The coordinator itself stood still, and heartbeats may lie unread: who is silent gets half a timeout more, once.
  void Forgive(absl::Time now);

  struct Replica {
    std::string name;
    std::vector<const Member*> ranks;  // live ones, by rank
    bool ready = false;                // all its ranks are members, ready, not fenced, and free
  };
  std::vector<Replica> Replicas() const;  // by name
  std::vector<Replica> ReadyReplicas() const;
  // What more than half of the replicas that are here say they serve, or something later: who lies alone cannot raise
  // it, and who serves nothing counts. Version 0: they do not agree on any.
  ServedVersion ServedByMost() const;
  std::optional<std::string> WhyNotReady(const std::string& replica) const;
  std::string WhyNotReady() const;  // one sentence over all replicas that are not ready

  // The longest ago first, beyond a bound also before their time.
  void ForgetLost(absl::Time now);
  absl::Time NextForget() const;
  // Live and lost members, by replica and rank, as far as the group knows them.
  std::vector<MemberStatus> Status(absl::Time now, const ServedVersion& committed, double wire_bytes) const;

 private:
  struct LostMember {
    Member member;
    absl::Time since;
  };
  bool IsStale(absl::Time now, const Member& member) const;
  absl::Status JudgeCount(const MemberInfo& info) const;

  absl::Duration heartbeat_timeout_;
  std::map<MemberId, Member> members_;
  std::map<std::string, LostMember> lost_;  // by name
};

std::string Describe(const Member& member);  // "sink-b (replica r1, rank 0)"

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_GROUP_H_
