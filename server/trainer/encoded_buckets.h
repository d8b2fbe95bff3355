// The encodes of one version, on their way from the thread that starts them to the one that sends behind them: the
// first bucket is on the wire while the last is not even started.
//
// Thread-safe. The encode thread adds every bucket, in order and without waiting for anything, so Await is short.
#ifndef WSYNC_SERVER_TRAINER_ENCODED_BUCKETS_H_
#define WSYNC_SERVER_TRAINER_ENCODED_BUCKETS_H_

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "server/backend/completion.h"
#include "server/core/sync.h"

namespace wsync {

class EncodedBuckets {
 public:
  void Add(CompletionPtr encode) {
    MutexLock lock(&mu_);
    encodes_.push_back(std::move(encode));
    added_.SignalAll();
  }

  // The encode of that bucket, once it was started. REQUIRES: it was added, or will be.
  CompletionPtr Await(size_t bucket) {
    MutexLock lock(&mu_);
    while (bucket >= encodes_.size()) added_.Wait(&mu_);
    return encodes_[bucket];
  }

  // One of those started so far is known to have failed.
  bool AnyFailed() {
    MutexLock lock(&mu_);
    return std::any_of(encodes_.begin(), encodes_.end(), [](const CompletionPtr& encode) {
      return encode != nullptr && !encode->Poll().value_or(absl::OkStatus()).ok();
    });
  }

 private:
  Mutex mu_;
  CondVar added_;
  std::vector<CompletionPtr> encodes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_ENCODED_BUCKETS_H_
