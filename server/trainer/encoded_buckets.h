// The encodes of one version, on their way from the thread that starts them to the one that sends behind them (the
// first bucket is on the wire while the last is not even started), and to whoever asks how far they are.
//
// Thread-safe. The encode thread adds every bucket, in order; once the first is there, without waiting for anything.
#ifndef WSYNC_SERVER_TRAINER_ENCODED_BUCKETS_H_
#define WSYNC_SERVER_TRAINER_ENCODED_BUCKETS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "server/backend/completion.h"
#include "server/core/sync.h"

namespace wsync {

class EncodedBuckets {
 public:
  explicit EncodedBuckets(size_t buckets) { encodes_.reserve(buckets); }

  // `bytes`: on the wire.
  void Add(CompletionPtr encode, int64_t bytes) {
    MutexLock lock(&mu_);
    const int64_t before = encodes_.empty() ? 0 : encodes_.back().end_bytes;
    encodes_.push_back({std::move(encode), before + bytes});
    added_.SignalAll();
  }

  // The version failed before its first encode: none will be added.
  void Abandon() {
    MutexLock lock(&mu_);
    abandoned_ = true;
    added_.SignalAll();
  }

  // The encode of that bucket, once it was started; nullopt when the version was abandoned, or who asks called off.
  std::optional<CompletionPtr> Await(size_t bucket, const std::stop_token& called_off) {
    const std::stop_callback wake(called_off, [this] {
      MutexLock lock(&mu_);
      added_.SignalAll();
    });
    MutexLock lock(&mu_);
    while (bucket >= encodes_.size() && !abandoned_ && !called_off.stop_requested()) added_.Wait(&mu_);
    if (bucket >= encodes_.size()) return std::nullopt;
    return encodes_[bucket].done;
  }

  // Wire bytes encoded so far. Encodes end about in the order they were started in, so a few are asked, not all: this
  // is called while the group waits.
  int64_t EncodedBytes() const {
    size_t ended = 0, running = Count();
    while (ended < running) {
      const size_t middle = ended + (running - ended) / 2;
      const CompletionPtr encode = At(middle).done;
      if (encode == nullptr || encode->Poll().has_value()) {
        ended = middle + 1;
      } else {
        running = middle;
      }
    }
    return ended == 0 ? 0 : At(ended - 1).end_bytes;
  }

  // One of those started so far is known to have failed, or none ever was.
  bool AnyFailed() {
    MutexLock lock(&mu_);
    return abandoned_ || std::any_of(encodes_.begin(), encodes_.end(), [](const Encode& encode) {
             return encode.done != nullptr && !encode.done->Poll().value_or(absl::OkStatus()).ok();
           });
  }

 private:
  struct Encode {
    CompletionPtr done;
    int64_t end_bytes = 0;  // of it and all before it
  };
  size_t Count() const {
    MutexLock lock(&mu_);
    return encodes_.size();
  }
  Encode At(size_t bucket) const {
    MutexLock lock(&mu_);
    return encodes_[bucket];
  }

  mutable Mutex mu_;
  CondVar added_;
  std::vector<Encode> encodes_ ABSL_GUARDED_BY(mu_);
  bool abandoned_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_ENCODED_BUCKETS_H_
