#include "server/rollout/receive_pipeline.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/core/clock.h"
#include "server/core/failpoint.h"
#include "server/core/ring.h"

namespace wsync {
namespace {

// What was started ends soon after a cancel, and a copy of one bucket takes far less.
constexpr absl::Duration kSettleTimeout = absl::Seconds(30);
constexpr absl::Duration kProgressPeriod = absl::Seconds(1);  // how often a long wait looks whether bytes still move

struct Flight {
  CompletionPtr received, checked, applied;
};

// Waits until `work` is done, or until nothing moved for the stall timeout.
absl::Status Await(const ReceiveContext& context, const CompletionPtr& work) {
  if (work == nullptr) return absl::OkStatus();
  int64_t moved = context.transport.moved_bytes();
  absl::Time moved_at = MonotonicNow();
  while (true) {
    work->Wait(MonotonicNow() + std::min(kProgressPeriod, context.stall_timeout)).IgnoreError();
    // Asked for again, because a Wait that ran out and work that failed with DEADLINE_EXCEEDED look the same.
    if (const std::optional<absl::Status> done = work->Poll()) return *done;
    if (const int64_t now_moved = context.transport.moved_bytes(); now_moved != moved) {
      moved = now_moved;
      moved_at = MonotonicNow();
    }
    if (MonotonicNow() - moved_at >= context.stall_timeout) {
      return absl::DeadlineExceededError(absl::StrCat("no byte arrived for ",
                                                      absl::FormatDuration(context.stall_timeout), ", ", moved,
                                                      " bytes of the version are here"));
    }
  }
}

absl::Status AwaitFlight(const ReceiveContext& context, const Flight& flight, absl::Time* received_at) {
  if (absl::Status status = Await(context, flight.received); !status.ok()) return status;
  *received_at = MonotonicNow();
  if (absl::Status status = Await(context, flight.checked); !status.ok()) return status;
  return Await(context, flight.applied);
}

// Ends what was started, well or not, and says what came of it. `result` has the status so far.
sink::Received Conclude(const ReceiveContext& context, sink::Received result, absl::Time begin,
                        absl::Time received_at) {
  context.bucket->store(-1, std::memory_order_relaxed);
  if (!result.status.ok()) context.transport.Cancel(result.status);
  const auto digests = context.loader.Finish(MonotonicNow() + kSettleTimeout);
  result.wrote = context.loader.wrote();
  if (result.status.ok()) result.status = digests.status();
  if (!result.status.ok()) return result;
  result.digest = context.plan.ContentDigest(*digests);
  result.timings.transfer = received_at - begin;
  result.timings.check = MonotonicNow() - received_at;
  return result;
}

// Waits for all flights in wire order, so that the error of the first bad bucket is the one that is told.
sink::Received Settle(const ReceiveContext& context, const std::vector<Flight>& flights, absl::Time begin) {
  sink::Received result;
  absl::Time received_at = begin;
  for (size_t k = 0; k < flights.size() && result.status.ok(); ++k) {
    context.bucket->store(static_cast<int64_t>(k), std::memory_order_relaxed);
    result.status = AwaitFlight(context, flights[k], &received_at);
    result.status.Update(
        WSYNC_BUCKET_FAILPOINT("rollout.bucket", static_cast<int64_t>(k), static_cast<int64_t>(flights.size())));
    if (!result.status.ok()) result.bucket = static_cast<int64_t>(k);
    if (result.status.ok() && context.applied) context.applied(static_cast<int64_t>(k));
  }
  return Conclude(context, std::move(result), begin, received_at);
}

}  // namespace

sink::Received ReceiveImage(const ReceiveContext& context, std::byte* image) {
  const absl::Time begin = MonotonicNow();
  std::vector<Flight> flights;
  for (const Bucket& bucket : context.plan.buckets()) {
    const auto k = static_cast<int64_t>(flights.size());
    std::byte* const wire = image + bucket.image_offset;
    Flight& flight = flights.emplace_back();
    (void)WSYNC_BUCKET_FAILPOINT("rollout.broadcast", k, static_cast<int64_t>(context.plan.buckets().size()));
    flight.received = context.transport.Broadcast(wire, bucket.wire_bytes, nullptr);
    flight.checked = context.loader.Check(k, wire, flight.received);
  }
  return Settle(context, flights, begin);
}

sink::Received ReceiveInPlace(const ReceiveContext& context, std::byte* ring, int32_t slots,
                              absl::Span<std::byte* const> direct) {
  const absl::Time begin = MonotonicNow();
  const RingLayout layout(context.plan, slots);
  const std::vector<Bucket>& buckets = context.plan.buckets();
  const auto count = static_cast<int64_t>(buckets.size());
  const int64_t early = std::min<int64_t>(slots, count);  // buckets that come before the pause, all into the ring
  std::vector<Flight> flights;
  bool live = false;  // bytes that nobody has checked may be in live memory
  const auto receive = [&](int64_t k, std::byte* wire, CompletionPtr after) {
    (void)WSYNC_BUCKET_FAILPOINT("rollout.broadcast", k, count);
    Flight& flight = flights.emplace_back();
    flight.received = context.transport.Broadcast(wire, buckets[k].wire_bytes, std::move(after));
    flight.checked = context.loader.Check(k, wire, flight.received);
  };
  const auto apply = [&](int64_t k, const std::byte* wire) {
    flights[k].applied = context.loader.Apply(k, wire, flights[k].checked);
  };
  for (int64_t k = 0; k < early; ++k) receive(k, ring + layout.OffsetOf(k), nullptr);
  const absl::Status paused = context.paused ? context.paused() : absl::OkStatus();
  if (!paused.ok()) return Conclude(context, {.status = paused}, begin, begin);
  std::vector<CompletionPtr> slot_free(static_cast<size_t>(slots));
  for (int64_t k = 0; k < count; ++k) {
    CompletionPtr& free = slot_free[static_cast<size_t>(k % slots)];
    std::byte* const place = direct.empty() ? nullptr : direct[k];
    std::byte* const wire = place != nullptr ? place : ring + layout.OffsetOf(k);
    live |= place != nullptr;
    if (k >= early) receive(k, wire, place != nullptr ? nullptr : free);
    apply(k, wire);  // of a direct bucket, the digest table alone
    if (place == nullptr) free = flights[k].applied;
  }
  sink::Received result = Settle(context, flights, begin);
  result.wrote |= live;
  return result;
}

sink::Received ReceiveWindowed(const ReceiveContext& context, std::byte* ring, int32_t slots,
                               const std::function<absl::Status(int64_t, const std::byte*)>& place,
                               const std::function<absl::Status()>& placed) {
  const absl::Time begin = MonotonicNow();
  const RingLayout layout(context.plan, slots);
  const std::vector<Bucket>& buckets = context.plan.buckets();
  const auto count = static_cast<int64_t>(buckets.size());
  std::vector<Flight> flights;
  sink::Received result;
  absl::Time received_at = begin;
  bool paused = false;
  for (int64_t k = 0; k < count && result.status.ok(); ++k) {
    for (auto next = static_cast<int64_t>(flights.size()); next < std::min(count, k + slots); ++next) {
      Flight& flight = flights.emplace_back();
      (void)WSYNC_BUCKET_FAILPOINT("rollout.broadcast", next, count);
      std::byte* const wire = ring + layout.OffsetOf(next);
      flight.received = context.transport.Broadcast(wire, buckets[next].wire_bytes, nullptr);
      flight.checked = context.loader.Check(next, wire, flight.received);
    }
    context.bucket->store(k, std::memory_order_relaxed);
    result.status = AwaitFlight(context, flights[k], &received_at);
    result.status.Update(WSYNC_BUCKET_FAILPOINT("rollout.bucket", k, count));
    if (!result.status.ok()) result.bucket = k;
    if (result.status.ok() && context.paused && !std::exchange(paused, true)) result.status = context.paused();
    if (result.status.ok()) result.status = place(k, ring + layout.OffsetOf(k));
  }
  if (result.status.ok()) result.status = placed();
  return Conclude(context, std::move(result), begin, received_at);
}

absl::Status AwaitEngine(StreamEvent& after, absl::Duration limit, const std::function<absl::Status()>& called_off) {
  return AwaitRecorded(
      after, limit, called_off,
      absl::StrCat("the engine's stream did not get to the point of its pause within ", absl::FormatDuration(limit)));
}

sink::ApplyDone ApplyImage(Loader& loader, const std::byte* image) {
  const absl::Time begin = MonotonicNow();
  sink::ApplyDone result;
  const CompletionPtr copied = loader.ApplyAll(image, nullptr);
  if (copied != nullptr) result.status = copied->Wait(MonotonicNow() + kSettleTimeout);
  result.status.Update(WSYNC_FAILPOINT("rollout.copied"));
  result.status.Update(loader.Finish(MonotonicNow() + kSettleTimeout).status());
  result.apply = MonotonicNow() - begin;
  return result;
}

}  // namespace wsync
