#include "server/rollout/layer_loans.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync {

void LayerLoans::Begin(Terms terms) {
  terms_ = std::move(terms);
  MutexLock lock(&mu_);
  lent_.clear();
  failed_ = absl::OkStatus();
}

absl::Status LayerLoans::Late(const std::string& what) const {
  return absl::DeadlineExceededError(
      absl::StrCat("engine ", terms_.engine, " ", what, " within ", absl::FormatDuration(terms_.limit)));
}

std::string LayerLoans::Oldest() const { return lent_.begin()->second.layer; }

absl::StatusOr<LayerLoans::Loan> LayerLoans::Borrow(const std::string& layer,
                                                    const std::function<void(uint64_t)>& ask) {
  Loan loan;
  {
    MutexLock lock(&mu_);
    const absl::Time deadline = MonotonicNow() + terms_.limit;
    const auto full = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return static_cast<int64_t>(lent_.size()) >= terms_.window;
    };
    while (full() && failed_.ok() && changed_.WaitUntil(&mu_, deadline)) {
    }
    if (!failed_.ok()) return failed_;
    if (full()) {
      return Late(absl::StrCat("did not say that it has taken layer ", Oldest(), ", so that there was no room for ",
                               layer, " in its window of ", terms_.window));
    }
    loan.ticket = ++last_ticket_;
    lent_[loan.ticket].layer = layer;
  }
  ask(loan.ticket);
  MutexLock lock(&mu_);
  const absl::Time deadline = MonotonicNow() + terms_.limit;
  const Lent& lent = lent_[loan.ticket];  // not taken back before it is complete
  while (lent.memory == nullptr && failed_.ok() && changed_.WaitUntil(&mu_, deadline)) {
  }
  if (!failed_.ok()) return failed_;
  if (lent.memory == nullptr) {
    return Late(absl::StrCat("gave no memory for layer ", layer, ", which has begun to arrive,"));
  }
  loan.memory = lent.memory;
  // Now, not when it was asked for: what was taken back meanwhile may be what is lent again.
  for (const auto& [ticket, other] : lent_) {
    if (ticket != loan.ticket) loan.beside.push_back(other.memory);
  }
  return loan;
}

void LayerLoans::Complete(uint64_t ticket) {
  MutexLock lock(&mu_);
  const auto lent = lent_.find(ticket);
  if (lent != lent_.end()) lent->second.complete = true;
}

absl::Status LayerLoans::AwaitAllTaken() {
  MutexLock lock(&mu_);
  const absl::Time deadline = MonotonicNow() + terms_.limit;
  while (!lent_.empty() && failed_.ok() && changed_.WaitUntil(&mu_, deadline)) {
  }
  if (!failed_.ok()) return failed_;
  return lent_.empty() ? absl::OkStatus()
                       : Late(absl::StrCat("did not say that it has taken layer ", Oldest(), ", which is complete,"));
}

void LayerLoans::Answer(LayerAnswer answer) {
  MutexLock lock(&mu_);
  const auto lent = lent_.find(answer.ticket);
  if (lent == lent_.end()) return;  // of an attempt that is over, or said twice
  if (auto* provided = std::get_if<LayerProvided>(&answer.says)) {
    if (lent->second.memory != nullptr) return;  // the first one counts
    lent->second.memory = std::make_shared<const LayerMemory>(std::move(provided->memory));
  } else if (const auto* refused = std::get_if<LayerRefused>(&answer.says)) {
    failed_.Update(absl::FailedPreconditionError(
        absl::StrCat("engine ", terms_.engine, " gave up at layer ", lent->second.layer, ": ", refused->reason)));
  } else if (lent->second.complete) {
    lent_.erase(lent);
  } else {
    failed_.Update(absl::InvalidArgumentError(absl::StrCat("engine ", terms_.engine, " says that it has taken layer ",
                                                           lent->second.layer, ", which is not complete yet")));
  }
  changed_.SignalAll();
}

void LayerLoans::Cancel(const absl::Status& why) {
  MutexLock lock(&mu_);
  failed_.Update(why);
  changed_.SignalAll();
}

}  // namespace wsync
