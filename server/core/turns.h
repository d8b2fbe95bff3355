// Whether the one thread that an agent thinks with still gets through its work.
//
// That thread counts its turns; another looks at the count, again and again. Only what it saw itself counts: a process
// that was stopped as a whole, or a machine that slept, was not stuck.
#ifndef WSYNC_SERVER_CORE_TURNS_H_
#define WSYNC_SERVER_CORE_TURNS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace wsync {

class Turns {
 public:
  // What a turn may take. The longest there is, of a catalog of 1,000,000 tensors, takes a fraction of that; and a
  // trainer that waits for this agent is to be told within ten seconds.
  static constexpr absl::Duration kLimit = absl::Seconds(7);

  // The counting thread only: a turn, from here to the end of the scope.
  class Scope {
   public:
    explicit Scope(Turns* turns) : turns_(turns) { turns_->count_.fetch_add(1, std::memory_order_relaxed); }
    ~Scope() { turns_->count_.fetch_add(1, std::memory_order_relaxed); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Turns* const turns_;
  };

  // The looking thread only, a few times a second. INTERNAL once the same turn was seen running for kLimit.
  absl::Status Look(absl::Time now) {
    const uint64_t count = count_.load(std::memory_order_relaxed);
    const bool same_turn = count % 2 == 1 && count == seen_;
    seen_for_ = same_turn ? seen_for_ + std::min(now - looked_, kLongestGap) : absl::ZeroDuration();
    seen_ = count;
    looked_ = now;
    if (seen_for_ < kLimit) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("the control thread has been at the same piece of work for ",
                                            absl::FormatDuration(absl::Floor(seen_for_, absl::Milliseconds(100)))));
  }

 private:
  static constexpr absl::Duration kLongestGap = absl::Milliseconds(500);  // between looks, of a process that runs

  std::atomic<uint64_t> count_{0};  // odd: in a turn
  uint64_t seen_ = 0;
  absl::Time looked_;
  absl::Duration seen_for_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_TURNS_H_
