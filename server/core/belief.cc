// What the coordinator makes of what members say: which version was committed before it was started, who cost a
// version.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/core/coordinator_impl.h"
#include "server/core/text.h"

namespace wsync {

// ---- what was committed before

// After a restart the members know best how far the versions had got: what most replicas serve is taken for the
// committed version, again whenever somebody comes, goes or speaks. It counts until a version is decided here, or the
// trainer's own bytes confirm it: from then on what members say they serve is about themselves only.
void Coordinator::Impl::Recall() {
  const bool checking = publish_.has_value() && publish_->stage == RunningPublish::Stage::kChecking;
  if (decided_ || checking) return;
  const ServedVersion served = group_.ServedByMost();
  if (served == committed_) return;
  committed_ = served;
  if (served.version > 0) {
    Log(action::Log::kInfo,
        absl::StrFormat("most replicas serve version %d, so that is the committed one", served.version));
  }
  const bool running = publish_.has_value() && publish_->stage == RunningPublish::Stage::kRunning;
  if (!running || publish_->version > committed_.version) return;  // one that waits meets it when it begins
  if (publish_->version == committed_.version && (!publish_->content || *publish_->content == committed_)) return;
  AbortPublish(OlderThanCommitted(publish_->version));
}

// Who else serves something may still be on its way.
bool Coordinator::Impl::Recalling() const { return !decided_ && now_ < first_catalog_ + kRejoinGrace; }

void Coordinator::Impl::NoteClaim(Member& member, const ServedVersion& serving) {
  const bool news = member.info.serving != serving;
  member.info.serving = serving;
  if (serving.version > 0 && serving.version <= kLastVersion) member.claim = serving;
  if (decided_ && news && serving.version > committed_.version) {
    Log(action::Log::kWarn, absl::StrFormat("%s says that it serves version %d, which was never committed here: it "
                                            "counts as one that lags",
                                            Describe(member), serving.version));
  }
  Recall();
}

// ---- who is to blame

// The job goes on without somebody only where it can.
bool Coordinator::Impl::OthersRemain(const std::string& replica) const {
  const std::vector<Group::Replica> replicas = group_.Replicas();
  const auto others = std::count_if(replicas.begin(), replicas.end(), [&](const Group::Replica& other) {
    return other.name != replica && static_cast<int32_t>(other.ranks.size()) == other.ranks[0]->info.replica_size &&
           std::all_of(other.ranks.begin(), other.ranks.end(),
                       [](const Member* member) { return member->ready && member->fenced.empty(); });
  });
  return others >= std::max<int64_t>(1, Needed());
}

// Whether somebody was fenced for what this attempt came to. What is unread when we stood still may say that nobody is
// to blame.
bool Coordinator::Impl::Blame(const Round& round) {
  if (round.begun() <= stood_still_) return false;
  bool fenced = false;
  for (const Culprit& culprit : round.Culprits()) {
    Member* member = group_.Find(culprit.member);
    if (member == nullptr || !member->fenced.empty()) continue;
    const int lost = fences_.Blame(now_, culprit.name, member->info.incarnation, publish_->first_epoch, culprit.reason);
    member->last_error = culprit.reason;
    if (lost < Fences::kLostVersions || !OthersRemain(culprit.replica)) continue;
    Fence(*member);
    fenced = true;
  }
  return fenced;
}

void Coordinator::Impl::Fence(Member& member) {
  fences_.Fence(member.info.name);
  member.fenced = fences_.WhyFenced(member.info.name);
  Log(action::Log::kError, absl::StrCat(Describe(member), " is ", member.fenced));
}

void Coordinator::Impl::On(const event::Unfence& event) {
  const std::vector<std::string> names = fences_.Lift(event.name);
  if (names.empty() && !event.name.empty()) {
    const std::vector<std::string> fenced = fences_.Names();
    out_.push_back(action::Unfenced{
        absl::NotFoundError(absl::StrCat(event.name, " is not fenced; ",
                                         fenced.empty() ? "nobody is" : "fenced are: " + absl::StrJoin(fenced, ", "))),
        {}});
    return;
  }
  for (auto& [id, member] : group_.members()) {
    if (std::find(names.begin(), names.end(), member.info.name) != names.end()) member.fenced.clear();
  }
  for (const std::string& name : names) Log(action::Log::kInfo, name + " is fenced no more: somebody asked for it");
  out_.push_back(action::Unfenced{absl::OkStatus(), names});
}

}  // namespace wsync
