// Whether the one thread that an agent thinks with still gets through its work.
//
// That thread counts its turns; another looks at the count, again and again.
#ifndef WSYNC_SERVER_CORE_TURNS_H_
#define WSYNC_SERVER_CORE_TURNS_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/seen_running.h"

namespace wsync {

class Turns {
 public:
  // What a turn may take. The longest there is, of a catalog of 1,000,000 tensors, takes a fraction of that; and a
  // trainer that waits for this agent is to be told within ten seconds.
  static constexpr absl::Duration kLimit = absl::Seconds(6);

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
    const absl::Duration running = turn_.Look(count % 2 == 1 ? count : 0, now);
    if (running < kLimit) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("the control thread has been at the same piece of work for ",
                                            absl::FormatDuration(absl::Floor(running, absl::Milliseconds(100)))));
  }

 private:
  std::atomic<uint64_t> count_{0};  // odd: in a turn
  SeenRunning turn_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_TURNS_H_
