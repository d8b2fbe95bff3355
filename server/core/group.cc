#include "server/core/group.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace wsync {
namespace {

// Long enough to be seen by who comes to look after an alarm, short enough that the list does not grow with every
// restarted pod.
constexpr absl::Duration kRememberLost = absl::Minutes(10);
// A rack of them; who joins and goes in a loop pushes out no more than that.
constexpr size_t kMaxLost = 256;
// Of a sentence that explains an error: who reads it mends the first ones first.
constexpr size_t kMaxReasons = 8;

absl::Status CheckInfo(const MemberInfo& info) {
  if (info.name.empty() || info.replica.empty()) {
    return absl::InvalidArgumentError(
        "join without a name or a replica: set `name` and `replica` in its configuration");
  }
  if (info.replica_size < 1 || info.rank < 0 || info.rank >= info.replica_size) {
    return absl::InvalidArgumentError(absl::StrFormat("join of %s: rank %d does not lie in [0, %d), its replica's size",
                                                      info.name, info.rank, info.replica_size));
  }
  return absl::OkStatus();
}

// A name, a host and a pid are read by everybody in the status: of a live member only what its process alone knows
// tells that a newcomer is the same one. A process without it waits until the other is silent.
bool SameIncarnation(const MemberInfo& a, const MemberInfo& b) {
  return a.incarnation == b.incarnation && !a.incarnation.IsZero();
}

std::string ReasonsOf(const Group::Replica& replica) {
  std::vector<std::string> reasons;
  const int32_t missing = replica.ranks[0]->info.replica_size - static_cast<int32_t>(replica.ranks.size());
  if (missing > 0)
    reasons.push_back(absl::StrCat(missing, " of its ranks ", missing == 1 ? "has" : "have", " not joined"));
  for (const Member* member : replica.ranks) {
    if (!member->fenced.empty()) {
      reasons.push_back(absl::StrCat(member->info.name, ": ", member->fenced));
    } else if (!member->ready) {
      reasons.push_back(absl::StrCat(member->info.name, ": ", member->reason));
    } else if (member->round != 0) {
      reasons.push_back(absl::StrCat(member->info.name, " still works on epoch ", member->round));
    }
  }
  return absl::StrJoin(reasons, "; ");
}

MemberStatus StatusOf(absl::Time now, const Member& member, const ServedVersion& committed, double wire_bytes) {
  MemberStatus status;
  status.info = member.info;
  status.engine = member.engine;
  status.phase = member.round != 0 ? member.progress.phase : MemberPhase::kIdle;
  status.serving = member.info.serving;
  status.lag = committed.version > status.serving.version ? committed.version - status.serving.version : 0;
  status.last_seen = now - member.last_seen;
  status.last_error = member.last_error;
  if (!member.fenced.empty()) {
    status.state = "fenced";
    status.last_error = member.fenced;
  } else if (member.round != 0) {
    status.state = "syncing";
    const bool current = member.progress.epoch == member.round && wire_bytes > 0;
    if (current) status.received_fraction = std::min(1.0, member.progress.received_bytes / wire_bytes);
  } else if (member.torn) {
    status.state = "torn";
  } else {
    status.state = member.ready ? "ready" : "waiting";
  }
  if (!member.ready && status.last_error.empty()) status.last_error = member.reason;
  return status;
}

}  // namespace

std::string Describe(const Member& member) {
  return absl::StrCat(member.info.name, " (replica ", member.info.replica, ", rank ", member.info.rank, ")");
}

bool Group::IsStale(absl::Time now, const Member& member) const {
  return now - member.last_seen > heartbeat_timeout_ / 2;
}

absl::Status Group::JudgeCount(const MemberInfo& info) const {
  if (members_.size() >= kMaxMembers) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%s cannot join: there are %d members already, which is all that a job may have", info.name, members_.size()));
  }
  const auto from_there = std::count_if(members_.begin(), members_.end(), [&](const auto& entry) {
    return !info.peer.empty() && entry.second.info.peer == info.peer;
  });
  if (static_cast<size_t>(from_there) < kMaxMembersOfPeer) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s cannot join: %d members have come from %s already, which is all that one address may have",
                      info.name, from_there, info.peer));
}

Group::Verdict Group::Judge(absl::Time now, const MemberInfo& info) const {
  if (absl::Status status = CheckInfo(info); !status.ok()) return {status};
  Verdict verdict;
  for (const auto& [id, member] : members_) {
    const bool same_place = member.info.replica == info.replica && member.info.rank == info.rank;
    if (member.info.name == info.name) {
      if (SameIncarnation(member.info, info) || IsStale(now, member)) {
        verdict.former = id;
        continue;
      }
    }
    if (member.info.name == info.name || same_place) {
      return {absl::AlreadyExistsError(absl::StrFormat(
                  "%s (replica %s, rank %d) cannot join: %s on %s, pid %d, is a live member; stop it, or give this one "
                  "another name and rank",
                  info.name, info.replica, info.rank, Describe(member), member.info.host, member.info.pid)),
              true};
    }
    if (!info.device_id.empty() && member.info.device_id == info.device_id) {
      return {absl::AlreadyExistsError(absl::StrFormat(
                  "%s cannot join: %s on %s, pid %d, has the same GPU %s, and NCCL takes one rank per GPU; set "
                  "transfer.device",
                  info.name, Describe(member), member.info.host, member.info.pid, info.device_id)),
              true};
    }
    if (member.info.replica == info.replica && member.info.replica_size != info.replica_size) {
      return {absl::InvalidArgumentError(absl::StrFormat("%s cannot join: it says that replica %s has %d ranks, but %s "
                                                         "says %d; give all ranks the same replica_size",
                                                         info.name, info.replica, info.replica_size, member.info.name,
                                                         member.info.replica_size)),
              true};
    }
  }
  if (verdict.former.has_value()) return verdict;
  return {JudgeCount(info), true};
}

Member& Group::Add(absl::Time now, MemberId id, const MemberInfo& info) {
  std::erase_if(lost_, [&](const auto& entry) {
    const MemberInfo& lost = entry.second.member.info;
    return lost.name == info.name || (lost.replica == info.replica && lost.rank == info.rank);
  });
  Member& member = members_[id];
  member.id = id;
  member.info = info;
  member.last_seen = now;
  return member;
}

void Group::Remove(MemberId id) { members_.erase(id); }

void Group::Lose(absl::Time now, MemberId id, const std::string& last_error) {
  auto node = members_.extract(id);
  if (node.empty()) return;
  node.mapped().last_error = last_error;
  const std::string name = node.mapped().info.name;
  lost_.insert_or_assign(name, LostMember{std::move(node.mapped()), now});
}

Member* Group::Find(MemberId id) {
  const auto it = members_.find(id);
  return it == members_.end() ? nullptr : &it->second;
}

std::vector<MemberId> Group::Silent(absl::Time now) const {
  std::vector<MemberId> silent;
  for (const auto& [id, member] : members_) {
    if (now - member.last_seen >= heartbeat_timeout_) silent.push_back(id);
  }
  return silent;
}

absl::Time Group::NextSilence() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, member] : members_) next = std::min(next, member.last_seen + heartbeat_timeout_);
  return next;
}

void Group::Forgive(absl::Time now) {
  for (auto& [id, member] : members_) {
    if (!IsStale(now, member) || std::exchange(member.forgiven, true)) continue;
    member.last_seen = now - heartbeat_timeout_ / 2;
  }
}

std::vector<Group::Replica> Group::Replicas() const {
  std::vector<const Member*> sorted;
  for (const auto& [id, member] : members_) sorted.push_back(&member);
  std::sort(sorted.begin(), sorted.end(), [](const Member* a, const Member* b) {
    return std::tie(a->info.replica, a->info.rank) < std::tie(b->info.replica, b->info.rank);
  });
  std::vector<Replica> replicas;
  for (const Member* member : sorted) {
    if (replicas.empty() || replicas.back().name != member->info.replica) replicas.push_back({member->info.replica});
    replicas.back().ranks.push_back(member);
  }
  for (Replica& replica : replicas) {
    replica.ready = static_cast<int32_t>(replica.ranks.size()) == replica.ranks[0]->info.replica_size &&
                    std::all_of(replica.ranks.begin(), replica.ranks.end(), [](const Member* member) {
                      return member->ready && member->fenced.empty() && member->round == 0;
                    });
  }
  return replicas;
}

std::vector<Group::Replica> Group::ReadyReplicas() const {
  std::vector<Replica> replicas = Replicas();
  std::erase_if(replicas, [](const Replica& replica) { return !replica.ready; });
  return replicas;
}

ServedVersion Group::ServedByMost() const {
  std::vector<ServedVersion> claims;
  for (const Replica& replica : Replicas()) {
    const Member* least =
        *std::min_element(replica.ranks.begin(), replica.ranks.end(),
                          [](const auto* a, const auto* b) { return a->claim.version < b->claim.version; });
    if (least->fenced.empty()) claims.push_back(least->claim);
  }
  if (claims.empty()) return {};
  std::sort(claims.begin(), claims.end(), [](const ServedVersion& a, const ServedVersion& b) {
    return std::tie(b.version, b.digest.high, b.digest.low) < std::tie(a.version, a.digest.high, a.digest.low);
  });
  const uint64_t version = claims[claims.size() / 2].version;
  // Of several contents the one that most of them have.
  ServedVersion served;
  int64_t most = 0;
  for (const ServedVersion& claim : claims) {
    const auto said = std::count(claims.begin(), claims.end(), claim);
    if (claim.version != version || said <= most) continue;
    served = claim;
    most = said;
  }
  return served;
}

std::optional<std::string> Group::WhyNotReady(const std::string& name) const {
  for (const Replica& replica : Replicas()) {
    if (replica.name == name) return replica.ready ? std::nullopt : std::optional(ReasonsOf(replica));
  }
  return "none of its ranks is a member any more";
}

std::string Group::WhyNotReady() const {
  std::vector<std::string> reasons;
  for (const Replica& replica : Replicas()) {
    if (!replica.ready) reasons.push_back(absl::StrCat("replica ", replica.name, " (", ReasonsOf(replica), ")"));
  }
  for (const auto& [name, lost] : lost_) {
    reasons.push_back(absl::StrCat(Describe(lost.member), " is lost: ", lost.member.last_error));
  }
  if (members_.empty() && lost_.empty())
    return "no rollout agent has joined: start wsync-rollout, check its coordinator address";
  if (reasons.empty()) return "no other rollout agent has joined";
  const size_t more = reasons.size() - std::min(reasons.size(), kMaxReasons);
  reasons.resize(reasons.size() - more);
  if (more > 0) reasons.push_back(absl::StrCat("and ", more, " more"));
  return absl::StrJoin(reasons, ", ");
}

void Group::ForgetLost(absl::Time now) {
  std::erase_if(lost_, [now](const auto& entry) { return now - entry.second.since >= kRememberLost; });
  while (lost_.size() > kMaxLost) {
    lost_.erase(std::min_element(lost_.begin(), lost_.end(),
                                 [](const auto& a, const auto& b) { return a.second.since < b.second.since; }));
  }
}

absl::Time Group::NextForget() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [name, lost] : lost_) next = std::min(next, lost.since + kRememberLost);
  return next;
}

std::vector<MemberStatus> Group::Status(absl::Time now, const ServedVersion& committed, double wire_bytes) const {
  std::vector<MemberStatus> statuses;
  for (const auto& [id, member] : members_) statuses.push_back(StatusOf(now, member, committed, wire_bytes));
  for (const auto& [name, lost] : lost_) {
    statuses.push_back(StatusOf(now, lost.member, committed, wire_bytes));
    statuses.back().state = "lost";
    statuses.back().received_fraction = 0;
  }
  std::sort(statuses.begin(), statuses.end(), [](const MemberStatus& a, const MemberStatus& b) {
    return std::tie(a.info.replica, a.info.rank, a.info.name) < std::tie(b.info.replica, b.info.rank, b.info.name);
  });
  return statuses;
}

}  // namespace wsync
