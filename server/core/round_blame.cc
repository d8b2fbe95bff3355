// Whom an attempt that came to nothing is blamed on: by what the source sees, where it sees its sinks, else by what
// these say of themselves.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/round.h"

namespace wsync {

// The session broke and no loss explained it in time. Who waited in vain for another one has waited long: then the
// others go on without that one at once. Of what else breaks a session the first times may be accidents.
Actions Round::Settled(absl::Time now) {
  settle_deadline_ = absl::InfiniteFuture();
  Actions out;
  const std::vector<size_t> culprits = absl::IsDataLoss(broken_) ? Damaged() : Breakers();
  absl::Status why = broken_;
  for (const size_t i : culprits) {
    sinks_[i].guilt = broken_by_ == i
                          ? std::string(broken_.message())
                          : Describe(now, sinks_[i], "is why the session broke", std::string(broken_.message()));
    if (i == culprits[0]) why = absl::Status(broken_.code(), sinks_[i].guilt);
  }
  const bool last = Last();
  if (!culprits.empty() && (absl::IsDeadlineExceeded(broken_) || (last && options_.quorum > 0))) {
    for (const size_t i : culprits) {
      Drop(sinks_[i], absl::DeadlineExceededError(sinks_[i].guilt), SinkState::kOut, out);
    }
  } else if (!last) {
    AbortRest(RoundPhase::kRestart, why, out);
  } else if (options_.quorum > 0 && broken_by_.has_value()) {
    Drop(sinks_[*broken_by_], broken_, SinkState::kOut, out);
  } else {
    AbortRest(RoundPhase::kAborted, why, out);
  }
  Actions more = Evaluate(now);
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

// With enough replicas staged the others are left out. Else those that hold the others up are dropped; with nobody
// slower than the rest there is nobody to drop.
Actions Round::StageDeadline(absl::Time now) {
  stage_deadline_ = absl::InfiniteFuture();
  Actions out;
  const std::string limit = absl::StrFormat("stage timeout is %.1f s", absl::ToDoubleSeconds(options_.stage_timeout));
  if (!source_digest_.has_value()) {
    AbortRest(RoundPhase::kAborted,
              absl::DeadlineExceededError(absl::StrCat("the source did not encode the version in time: ", limit)), out);
    return out;
  }
  const std::vector<size_t> late = Unfinished();
  if (late.empty()) return out;
  const bool enough = Count({SinkState::kStaged}) >= Needed();
  const std::vector<size_t> absent = enough ? std::vector<size_t>() : Absent();
  const std::vector<size_t> culprits = enough ? late : !absent.empty() ? absent : Slowest();
  if (!culprits.empty()) {
    // Where only they say how far they came, those behind the one that stops stop as well.
    const bool sure = enough || Seen().has_value() || culprits.size() == 1;
    for (const size_t i : culprits) {
      const std::string why =
          Describe(now, sinks_[i],
                   absent.empty() ? "did not stage in time" : "never opened its data stream, or broke it off", limit);
      if (sure) sinks_[i].guilt = why;
      Drop(sinks_[i], absl::DeadlineExceededError(why), SinkState::kOut, out);
    }
  } else {
    const bool alike = late.size() > 1;  // it is not one of them, then
    AbortRest(RoundPhase::kAborted,
              absl::DeadlineExceededError(absl::StrCat(
                  alike ? "the source did not bring the version to any replica in time, all have received alike: " : "",
                  Describe(now, sinks_[late[0]], "did not stage in time", limit))),
              out);
  }
  Actions more = Evaluate(now);
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

std::optional<std::vector<PeerProgress>> Round::Seen() const {
  auto seen = options_.peers ? options_.peers() : std::nullopt;
  if (seen.has_value()) seen->resize(sinks_.size());  // of whom the source knows nothing, nothing has come
  return seen;
}

std::vector<size_t> Round::Unfinished() const {
  std::vector<size_t> unfinished;
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (sinks_[i].state == SinkState::kReceiving) unfinished.push_back(i);
  }
  return unfinished;
}

// Who has no stream at the source, or broke it off, where others have one. With nobody there it is the source's fault.
std::vector<size_t> Round::Absent() const {
  const auto seen = Seen();
  std::vector<size_t> absent;
  if (!seen.has_value()) return absent;
  for (const size_t i : Unfinished()) {
    if (!(*seen)[i].connected || (*seen)[i].broke_off) absent.push_back(i);
  }
  if (absent.size() == sinks_.size()) absent.clear();
  return absent;
}

// Sinks that received least, if somebody received more: by the source's account where it has one.
std::vector<size_t> Round::Slowest() const {
  uint64_t least = UINT64_MAX;
  uint64_t most = 0;
  const auto seen = Seen();
  const auto progress = [&](size_t i) {
    if (sinks_[i].state == SinkState::kStaged) return UINT64_MAX;
    return seen.has_value() ? static_cast<uint64_t>((*seen)[i].moved_bytes) : sinks_[i].received_bytes;
  };
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (sinks_[i].state != SinkState::kReceiving && sinks_[i].state != SinkState::kStaged) continue;
    least = std::min(least, progress(i));
    most = std::max(most, progress(i));
  }
  std::vector<size_t> slowest;
  for (size_t i = 0; i < sinks_.size() && least < most; ++i) {
    if (sinks_[i].state == SinkState::kReceiving && progress(i) == least) slowest.push_back(i);
  }
  return slowest;
}

// Who broke the session. Where the source sees its sinks, it is those that it lost, else those that say so although it
// still has them, unless it gave up by itself. Where it does not, a rank that stops stops all: whoever is alone in
// complaining, or in not complaining.
std::vector<size_t> Round::Breakers() const {
  std::vector<size_t> accusers, silent;
  for (const size_t i : Unfinished()) (sinks_[i].accuses ? accusers : silent).push_back(i);
  if (Seen().has_value()) {
    const std::vector<size_t> absent = Absent();
    return !absent.empty() || source_broke_ ? absent : accusers;
  }
  if (accusers.empty() || accusers.size() == silent.size()) return {};
  return accusers.size() > silent.size() ? silent : accusers;
}

// All of several: then the bytes were damaged before they were sent.
std::vector<size_t> Round::Damaged() const {
  std::vector<size_t> damaged;
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (sinks_[i].damaged) damaged.push_back(i);
  }
  if (damaged.size() > 1 && damaged.size() == sinks_.size()) damaged.clear();
  return damaged;
}

std::vector<Culprit> Round::Culprits() const {
  std::vector<Culprit> culprits;
  std::vector<bool> guilty(replicas_.size(), false);
  for (size_t i = 0; i < sinks_.size(); ++i) {
    if (sinks_[i].guilt.empty()) continue;
    guilty[sinks_[i].replica] = true;
    culprits.push_back({participants_[i].member, participants_[i].name, participants_[i].replica, sinks_[i].guilt});
  }
  const bool all = std::count(guilty.begin(), guilty.end(), true) == replicas();
  if (all && replicas() > 1) culprits.clear();
  return culprits;
}

}  // namespace wsync
