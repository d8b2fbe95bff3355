// Publisher in ring mode: K slots, each encoded again once its last broadcast is done. The trainer waits for the wire.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/trainer/publisher.h"

namespace wsync {
namespace {

bool Failed(const CompletionPtr& completion) {
  return completion != nullptr && !completion->Poll().value_or(absl::OkStatus()).ok();
}

// Whether the first encode that failed did so because the broadcast that held its slot failed.
bool FailedBehindWire(const std::vector<CompletionPtr>& encodes, const std::vector<CompletionPtr>& sends,
                      size_t slots) {
  for (size_t k = 0; k < encodes.size(); ++k) {
    if (Failed(encodes[k])) return k >= slots && Failed(sends[k - slots]);
  }
  return false;
}

}  // namespace

void Publisher::ServeThroughRing(const std::shared_ptr<SourceJob>& job) {
  const action::StartSource& start = job->start();
  if (ring_released_ == start.version) {
    const absl::Status lost = absl::FailedPreconditionError(
        absl::StrCat("version ", start.version,
                     " cannot be sent again: ring mode keeps no copy (transfer.source_mode: ", "full does)"));
    return Fail(*job, lost, /*version_lost=*/true);
  }
  if (!encoder_.can_encode()) return Fail(*job, CannotEncode(), /*version_lost=*/true);
  if (absl::Status status = OpenOrder(*job); !status.ok()) return Fail(*job, status, /*version_lost=*/true);
  BeginProgress(start.version);
  const absl::Time begun = MonotonicNow();
  bool encode_failed = false;
  const auto digest = StreamThroughRing(job, &encode_failed);
  EndProgress();
  if (!digest.ok()) {
    ring_session_ = nullptr;
    if (!job->quiet()) Fail(*job, digest.status(), encode_failed || job->dropped());
    return;
  }
  ring_released_ = start.version;
  report_(event::SourceReleased{start.version, *digest, MonotonicNow() - begun, start.epoch});
  report_(event::SourceSent{start.epoch, start.version});
}

absl::StatusOr<Hash128> Publisher::StreamThroughRing(const std::shared_ptr<SourceJob>& job, bool* encode_failed) {
  const std::vector<Bucket>& buckets = encoder_.plan().buckets();
  const size_t slots = static_cast<size_t>(encoder_.slots());
  const SessionLimits limits = Limits();
  const bool alone = job->start().world <= 1;
  const auto open = [&] {
    if (alone) return absl::OkStatus();
    return Session::Open(*backend_, job, &session_progress_, limits.connect, &ring_session_);
  };
  absl::Status sent;
  if (job->order() != nullptr) {
    // Members give up connecting before a slow stream is given up, and must not be blamed for it.
    sent = open();
    if (!sent.ok()) return sent;
    const absl::Status started = AwaitStart(*job);
    *encode_failed = !started.ok();
    if (!started.ok()) return started;
  }
  std::vector<CompletionPtr> encodes;
  std::vector<CompletionPtr> sends;
  // The first slots are filled while the session connects.
  for (size_t k = 0; k < std::min(slots, buckets.size()); ++k) encodes.push_back(EncodeBucket(k, nullptr));
  if (job->order() == nullptr) sent = open();
  for (size_t k = 0; sent.ok() && k < buckets.size(); ++k) {
    if (k >= slots) encodes.push_back(EncodeBucket(k, sends[k - slots]));
    std::byte* slot = encoder_.Place(static_cast<int64_t>(k));
    (void)WSYNC_BUCKET_FAILPOINT("trainer.broadcast", static_cast<int64_t>(k), static_cast<int64_t>(buckets.size()));
    sends.push_back(alone ? encodes[k] : ring_session_->Broadcast(slot, buckets[k].wire_bytes, encodes[k]));
  }
  auto digest = FinishEncoding(*job, limits.transfer);
  if (!alone && sent.ok()) sent = ring_session_->WaitSent(sends, limits.transfer);
  if (digest.ok() && sent.ok()) return digest;
  *encode_failed = !digest.ok() && !FailedBehindWire(encodes, sends, slots);
  return *encode_failed ? digest.status() : sent;
}

}  // namespace wsync
