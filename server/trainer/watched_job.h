// The job that one of the publisher's threads is at, watched from outside: once called off it ends soon, or its thread
// hangs in the device or the network, which nothing but a new process mends. Guarded by its owner.
#ifndef WSYNC_SERVER_TRAINER_WATCHED_JOB_H_
#define WSYNC_SERVER_TRAINER_WATCHED_JOB_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/core/seen_running.h"
#include "server/trainer/source_job.h"

namespace wsync {

class WatchedJob {
 public:
  // Well beyond what anything that can be called off takes to notice.
  static constexpr absl::Duration kEndLimit = absl::Seconds(8);
  enum class Ends : uint8_t { kOnceCancelled, kOnceDropped };  // when it need not go on

  WatchedJob(const char* what, Ends ends) : what_(what), ends_(ends) {}

  void Begin(std::shared_ptr<SourceJob> job) {  // null: work that is not called off
    job_ = std::move(job);
    ++works_;
  }
  void End() { job_ = nullptr; }

  // One thread, a few times a second. INTERNAL once the same job was seen running for kEndLimit though called off.
  absl::Status Look(absl::Time now) {
    const bool called_off =
        job_ != nullptr && (job_->dropped() || (ends_ == Ends::kOnceCancelled && !job_->cancelled().ok()));
    if (late_.Look(called_off ? works_ : 0, now) < kEndLimit) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("the ", what_, " thread does not end version ", job_->start().version,
                                            ", which was called off ", absl::FormatDuration(kEndLimit),
                                            " ago: ", job_->cancelled().message()));
  }

 private:
  const char* const what_;
  const Ends ends_;
  std::shared_ptr<SourceJob> job_;
  uint64_t works_ = 0;
  SeenRunning late_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_WATCHED_JOB_H_
