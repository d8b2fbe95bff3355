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
#include "server/core/plan.h"
#include "server/core/seen_running.h"
#include "server/trainer/source_job.h"

namespace wsync {

class WatchedJob {
 public:
  // Well beyond what anything that can be called off takes to notice: a bucket that is being encoded comes to its end.
  static constexpr absl::Duration kEndLimit = absl::Seconds(8);
  static constexpr double kSlowestEncode = 100e6;  // wire bytes per second
  // Of what is not called off: taking and opening memory.
  static constexpr absl::Duration kLongestWork = absl::Minutes(10);
  enum class Ends : uint8_t { kOnceCancelled, kOnceDropped };  // when it need not go on

  WatchedJob(const char* what, Ends ends) : what_(what), ends_(ends) {}

  // `job` null: work that is not called off. `plan`: of what is encoded or sent; null: none.
  void Begin(std::shared_ptr<SourceJob> job, const Plan* plan) {
    job_ = std::move(job);
    bucket_ = absl::Seconds(plan == nullptr ? 0 : static_cast<double>(plan->max_bucket_bytes()) / kSlowestEncode);
    running_ = true;
    ++works_;
  }
  void End() {
    job_ = nullptr;
    running_ = false;
  }

  // One thread, a few times a second. INTERNAL once the same job was seen running for kEndLimit though called off.
  absl::Status Look(absl::Time now) {
    const bool called_off =
        job_ != nullptr && (job_->dropped() || (ends_ == Ends::kOnceCancelled && !job_->cancelled().ok()));
    const bool counts = running_ && (job_ == nullptr || called_off);
    const absl::Duration limit = job_ == nullptr ? kLongestWork : kEndLimit + bucket_;
    if (late_.Look(counts ? works_ : 0, now) < limit || !counts) return absl::OkStatus();
    if (job_ == nullptr) {
      return absl::InternalError(
          absl::StrCat("the ", what_, " thread has been taking or opening memory for ", absl::FormatDuration(limit)));
    }
    return absl::InternalError(absl::StrCat("the ", what_, " thread does not end version ", job_->start().version,
                                            ", which was called off ", absl::FormatDuration(limit),
                                            " ago: ", job_->cancelled().message()));
  }

 private:
  const char* const what_;
  const Ends ends_;
  std::shared_ptr<SourceJob> job_;
  absl::Duration bucket_;  // what one may take
  bool running_ = false;
  uint64_t works_ = 0;
  SeenRunning late_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_WATCHED_JOB_H_
