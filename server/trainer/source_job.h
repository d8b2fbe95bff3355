// One StartSource (or CheckContent) on its way through the publisher's threads, and the means to call it off.
//
// Whoever is about to block in something that can be cancelled hooks it to a token with std::stop_callback: the hook
// runs at once when the job was called off before, and its destructor waits until a running hook has returned. So the
// thing may be destroyed right after it. Thread-safe.
#ifndef WSYNC_SERVER_TRAINER_SOURCE_JOB_H_
#define WSYNC_SERVER_TRAINER_SOURCE_JOB_H_

#include <cstdint>
#include <memory>
#include <stop_token>
#include <utility>

#include "absl/status/status.h"
#include "server/core/events.h"
#include "server/core/sync.h"
#include "server/trainer/stream_order.h"

namespace wsync {

class SourceJob {
 public:
  explicit SourceJob(action::StartSource start, std::shared_ptr<StreamOrder> order = nullptr)
      : start_(std::move(start)), order_(std::move(order)) {}

  const action::StartSource& start() const { return start_; }
  bool is_check() const { return start_.world == 0; }  // of a CheckContent: nobody gets what it encodes
  StreamOrder* order() const { return order_.get(); }  // null: the weights may be read at once
  enum class Report : uint8_t { kNo, kYes };           // must the coordinator hear of it? not when it asked for it
  // Stops sending; with `drop` also encoding. The first reason stays.
  void Cancel(const absl::Status& why, bool drop, Report report) {
    {
      MutexLock lock(&mu_);
      if (why_.ok()) {
        why_ = why;
        quiet_ = report == Report::kNo;
      }
    }
    send_.request_stop();
    if (drop) encode_.request_stop();
  }
  // OK while the job is wanted, else why not.
  absl::Status cancelled() const {
    MutexLock lock(&mu_);
    return why_;
  }
  // It was called off by somebody who knows.
  bool quiet() const {
    MutexLock lock(&mu_);
    return quiet_;
  }
  bool dropped() const { return encode_.stop_requested(); }
  std::stop_token send_token() const { return send_.get_token(); }
  std::stop_token encode_token() const { return encode_.get_token(); }

 private:
  const action::StartSource start_;
  const std::shared_ptr<StreamOrder> order_;
  mutable Mutex mu_;
  absl::Status why_ ABSL_GUARDED_BY(mu_);
  bool quiet_ ABSL_GUARDED_BY(mu_) = false;
  std::stop_source send_;
  std::stop_source encode_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_SOURCE_JOB_H_
