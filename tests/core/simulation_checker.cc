#include "tests/core/simulation_checker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace wsync::sim {

void Checker::Violate(std::string what) {
  if (violation_.empty()) violation_ = std::move(what);
}

void Checker::CoordinatorStarts() {
  members_.clear();
  joining_.clear();
  attempts_.clear();
  publishes_.clear();
  last_epoch_ = 0;
  session_ = {};
  ++counts_.coordinator_lives;
}

void Checker::Paused(absl::Duration pause) {
  for (auto& [version, publish] : publishes_) publish.since += pause;
}

void Checker::Before(absl::Time now, const Event& event) {
  std::visit([&](const auto& what) { OnEvent(now, what); }, event);
}

void Checker::After(absl::Time now, const Actions& actions) {
  for (const Action& action : actions) {
    std::visit([&](const auto& what) { OnAction(now, what); }, action);
  }
  for (const uint64_t epoch : std::exchange(deciding_, {})) CheckDecision(now, epoch);
  CheckKeptSession();
}

void Checker::CheckKeptSession() {
  const auto former = std::exchange(kept_with_, std::nullopt);
  if (former.has_value() && *former != session_.members) {
    Violate(absl::StrCat("epoch ", session_.epoch, " goes on in the session of other members"));
  }
}

// ---- what goes in

void Checker::OnEvent(absl::Time now, const event::Publish& event) {
  publishes_.try_emplace(event.version, Publish{now});
}

void Checker::OnEvent(absl::Time, const event::Joined& event) { joining_[event.member] = event.info.replica; }

void Checker::OnEvent(absl::Time, const event::HeartbeatSeen& event) {
  const auto it = members_.find(event.member);
  if (it == members_.end() || !it->second.committed) return;
  // A sink that says it is idle after a commit is out of that round, whatever became of it.
  if (event.epoch != it->second.epoch || event.phase == MemberPhase::kIdle) Answered(event.member, it->second.epoch);
}

void Checker::OnEvent(absl::Time, const event::Staged& event) {
  const auto it = attempts_.find(event.epoch);
  const auto member = members_.find(event.member);
  if (it == attempts_.end() || member == members_.end() || member->second.epoch != event.epoch) {
    ++counts_.stale_messages;
    return;
  }
  if (it->second.participants.contains(event.member)) it->second.staged[event.member] = event.digest;
}

void Checker::OnEvent(absl::Time, const event::Applied& event) {
  if (session_.Has(event.member, event.epoch)) session_.applied.insert(event.member);
  Answered(event.member, event.epoch);
}

void Checker::OnEvent(absl::Time, const event::Failed& event) {
  const auto attempt = attempts_.find(event.epoch);
  const bool engine_gone = absl::IsUnavailable(event.status) && event.phase == MemberPhase::kStaged;
  if (engine_gone && attempt != attempts_.end()) attempt->second.engines_gone.insert(event.member);
  session_.broken |= session_.Has(event.member, event.epoch);
  Answered(event.member, event.epoch);
}

void Checker::Answered(MemberId member, uint64_t epoch) {
  const auto it = members_.find(member);
  if (it == members_.end() || it->second.epoch != epoch || epoch == 0) {
    ++counts_.stale_messages;
    return;
  }
  const auto attempt = attempts_.find(epoch);
  if (attempt != attempts_.end()) attempt->second.staged.erase(member);
  it->second.epoch = 0;
  it->second.committed = false;
}

// ---- what comes out

bool Checker::MustBeLive(MemberId member, const char* message) {
  if (members_.contains(member)) return true;
  Violate(absl::StrCat(message, " sent to member ", member, ", which is not a live member"));
  return false;
}

void Checker::OnAction(absl::Time, const action::SendWelcome& action) {
  members_[action.member].replica = joining_[action.member];
}

void Checker::OnAction(absl::Time, const action::Disconnect& action) {
  ++counts_.lost;
  Gone(action.member);
}

void Checker::OnAction(absl::Time now, const action::StartSource& action) {
  if (action.epoch <= last_epoch_) Violate(absl::StrCat("epoch ", action.epoch, " follows ", last_epoch_));
  last_epoch_ = action.epoch;
  if (!action.session.empty() && action.session == session_.token) {
    // Whoever called something off in it has closed it, and broadcasts match by their number.
    if (session_.broken || !session_.sent || session_.applied.size() != session_.members.size()) {
      Violate(absl::StrCat("epoch ", action.epoch, " goes on in a session that epoch ", session_.epoch, " broke"));
    }
    kept_with_ = session_.members;
    ++counts_.kept_sessions;
  }
  session_ = {.token = action.session, .epoch = action.epoch};
  if (!action.encode && retained_.version != action.version) {
    Violate(absl::StrFormat("asked to send version %d again, but the source retains %d", action.version,
                            retained_.version));
  }
  Attempt& attempt = attempts_[action.epoch];
  attempt.version = action.version;
  const auto publish = publishes_.find(action.version);
  attempt.catch_up = publish == publishes_.end();
  attempt.deadline = now + stage_budget_;
  if (!attempt.catch_up) {
    if (publish->second.begun.has_value()) ++counts_.restarts;
    publish->second.begun = publish->second.begun.value_or(now);
    attempt.deadline = std::min(attempt.deadline, *publish->second.begun + 2 * stage_budget_);
  }
  while (attempts_.size() > 16) attempts_.erase(attempts_.begin());
}

void Checker::OnAction(absl::Time, const action::SendBegin& action) {
  if (!MustBeLive(action.member, "begin")) return;
  LiveMember& member = members_[action.member];
  if (member.epoch != 0) {
    Violate(absl::StrFormat("member %d is asked into epoch %d while it is in epoch %d", action.member, action.epoch,
                            member.epoch));
  }
  member.epoch = action.epoch;
  if (action.session != session_.token) Violate("members of one round in two sessions");
  session_.members.push_back(action.member);
  Attempt& attempt = attempts_[action.epoch];
  if (action.epoch != last_epoch_ || action.version != attempt.version) Violate("begin without its StartSource");
  attempt.participants[action.member] = member.replica;
  if (action.rank != static_cast<int32_t>(attempt.participants.size()) || action.rank >= action.world) {
    Violate("ranks of a session are not 1, 2, ...");
  }
}

void Checker::OnAction(absl::Time, const action::SendCommit& action) {
  if (!MustBeLive(action.member, "commit")) return;
  Attempt& attempt = attempts_[action.epoch];
  const auto staged = attempt.staged.find(action.member);
  if (staged == attempt.staged.end() || staged->second != action.digest) {
    Violate(
        absl::StrFormat("commit of version %d to member %d, which has not staged it", action.version, action.member));
  }
  if (members_[action.member].epoch != action.epoch) Violate("commit to a member that is in another round");
  members_[action.member].committed = true;
  attempt.committed.insert(action.member);
  deciding_.insert(action.epoch);
  Decided({action.version, action.digest});
}

void Checker::OnAction(absl::Time, const action::SendAbort& action) {
  if (!MustBeLive(action.member, "abort")) return;
  Attempt& attempt = attempts_[action.epoch];
  session_.broken |= action.epoch == session_.epoch;
  if (attempt.committed.contains(action.member)) Violate("abort after commit: a decision was taken back");
  if (action.status.ok()) Violate("abort without a reason");
  LiveMember& member = members_[action.member];
  if (member.epoch == action.epoch) member.epoch = 0;
}

void Checker::Decided(const ServedVersion& content) {
  const auto [it, first] = decided_.try_emplace(content.version, content.digest);
  if (!first && it->second != content.digest) Violate(absl::StrCat("two digests for version ", content.version));
  if (!first) return;
  if (content.version <= latest_.version) {
    Violate(absl::StrFormat("version %d committed after version %d", content.version, latest_.version));
  }
  if (content_[content.version] != content.digest) {
    Violate(absl::StrFormat("version %d committed with content that the trainer did not publish", content.version));
  }
  latest_ = content;
  ++counts_.commits;
}

// All replicas of the round switch, or as many as the policy asks for. Under `all` a live sink is passed over only with
// a replica that lost another rank, or an engine that had everything, or after the deadline.
void Checker::CheckDecision(absl::Time now, uint64_t epoch) {
  const Attempt& attempt = attempts_[epoch];
  std::map<std::string, bool> complete;  // by replica: all its ranks are live and were told to commit
  std::set<std::string> broken;          // replicas with a rank that is gone
  for (const auto& [id, replica] : attempt.participants) {
    bool& all = complete.try_emplace(replica, true).first->second;
    all = all && attempt.committed.contains(id);
    if (!members_.contains(id) || attempt.engines_gone.contains(id)) broken.insert(replica);
  }
  for (const auto& [id, replica] : attempt.participants) {
    const bool excused = attempt.committed.contains(id) || broken.contains(replica) || now >= attempt.deadline;
    if (!excused && !attempt.catch_up && options_.quorum == 0) {
      Violate(absl::StrFormat("epoch %d decided without live member %d before the deadline", epoch, id));
    }
  }
  const int64_t committed =
      std::count_if(complete.begin(), complete.end(), [](const auto& entry) { return entry.second; });
  const int64_t needed = attempt.catch_up ? 1 : options_.quorum > 0 ? options_.quorum : options_.min_replicas;
  if (committed < needed) {
    Violate(absl::StrFormat("epoch %d decided with %d replicas, %d are needed", epoch, committed, needed));
  }
}

void Checker::OnAction(absl::Time now, const action::PublishDone& action) {
  const auto it = publishes_.find(action.version);
  if (it == publishes_.end()) return Violate(absl::StrCat("an answer to nobody, about version ", action.version));
  const absl::Duration bound =
      options_.min_replicas_wait + 2 * stage_budget_ + options_.apply_timeout + absl::Seconds(1);
  if (now - it->second.since > bound) {
    Violate(absl::StrFormat("publish of version %d was not answered for %s", action.version,
                            absl::FormatDuration(now - it->second.since)));
  }
  publishes_.erase(it);
  if (!action.status.ok()) {
    ++counts_.failures;
    return;
  }
  ++counts_.publishes;
  counts_.repeats += action.report.already_committed;
  if (content_[action.version] != action.report.digest) {
    Violate(absl::StrFormat("publish of version %d succeeded with other content than the trainer's", action.version));
  }
  Decided({action.version, action.report.digest});
  for (const ReplicaOutcome& outcome : action.report.replicas) {
    counts_.left_out += outcome.result == ReplicaResult::kLeftOut;
    counts_.torn += outcome.result == ReplicaResult::kTorn;
    if (outcome.result != ReplicaResult::kApplied && outcome.reason.empty()) Violate("left out without a reason");
  }
}

void Checker::Served(const std::string& sink, uint64_t epoch, const ServedVersion& former,
                     const ServedVersion& now_serving) {
  const auto it = decided_.find(now_serving.version);
  if (it == decided_.end() || it->second != now_serving.digest) {
    Violate(
        absl::StrFormat("%s serves version %d, which was not committed with this content", sink, now_serving.version));
  }
  if (now_serving.version < former.version) {
    Violate(absl::StrFormat("%s went from version %d back to %d", sink, former.version, now_serving.version));
  }
  const auto attempt = attempts_.find(epoch);
  if (attempt != attempts_.end() && attempt->second.catch_up) ++counts_.catch_ups;
}

}  // namespace wsync::sim
