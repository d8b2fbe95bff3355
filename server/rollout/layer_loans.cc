#include "server/rollout/layer_loans.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"

namespace wsync {
namespace {

std::string Name(const std::string& layer) {
  return layer.empty() ? "the tensors of no layer" : absl::StrCat("layer ", layer);
}

}  // namespace

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

std::string LayerLoans::Oldest() const {
  const auto layer = std::find_if(lent_.begin(), lent_.end(), [](const auto& l) { return !l.second.layer.empty(); });
  return Name(layer == lent_.end() ? "" : layer->second.layer);
}

bool LayerLoans::Full() const {
  const auto layers = std::count_if(lent_.begin(), lent_.end(), [](const auto& l) { return !l.second.layer.empty(); });
  return layers >= terms_.window;
}

absl::StatusOr<LayerLoans::Loan> LayerLoans::Borrow(const std::string& layer,
                                                    const std::function<void(uint64_t)>& ask) {
  Loan loan;
  {
    MutexLock lock(&mu_);
    const absl::Time deadline = MonotonicNow() + terms_.limit;
    while (Full() && failed_.ok() && changed_.WaitUntil(&mu_, deadline)) {
    }
    if (!failed_.ok()) return failed_;
    if (Full()) {
      return Late(absl::StrCat("did not say that it has taken ", Oldest(), ", so that there was no room for ", layer,
                               " in its window of ", terms_.window));
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
    if (ticket != loan.ticket && other.memory != nullptr) loan.beside.push_back(other.memory);
  }
  return loan;
}

void LayerLoans::Complete(uint64_t ticket) {
  MutexLock lock(&mu_);
  const auto lent = lent_.find(ticket);
  if (lent != lent_.end()) lent->second.complete = true;
}

uint64_t LayerLoans::CompleteStays() {
  MutexLock lock(&mu_);
  lent_[++last_ticket_].complete = true;
  return last_ticket_;
}

absl::Status LayerLoans::AwaitAllTaken() {
  MutexLock lock(&mu_);
  const absl::Time deadline = MonotonicNow() + terms_.limit;
  while (!lent_.empty() && failed_.ok() && changed_.WaitUntil(&mu_, deadline)) {
  }
  if (!failed_.ok()) return failed_;
  return lent_.empty() ? absl::OkStatus()
                       : Late(absl::StrCat("did not say that it has taken ", Oldest(), ", complete as it is,"));
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
        absl::StrCat("engine ", terms_.engine, " gave up at ", Name(lent->second.layer), ": ", refused->reason)));
  } else if (lent->second.complete) {
    lent_.erase(lent);
  } else {
    failed_.Update(absl::InvalidArgumentError(absl::StrCat("engine ", terms_.engine, " says that it has taken ",
                                                           Name(lent->second.layer), ", which is not complete yet")));
  }
  changed_.SignalAll();
}

void LayerLoans::Cancel(const absl::Status& why) {
  MutexLock lock(&mu_);
  failed_.Update(why);
  changed_.SignalAll();
}

}  // namespace wsync
