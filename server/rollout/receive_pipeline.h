// The buckets' way on the receiving side: broadcast -> digest check [-> apply].
//
// Everything is started first, each step ordered after the one before it by completions; the host waits only when all
// of it is under way. Runs on the receiver's thread; progress may be read from any.
#ifndef WSYNC_SERVER_ROLLOUT_RECEIVE_PIPELINE_H_
#define WSYNC_SERVER_ROLLOUT_RECEIVE_PIPELINE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/backend/loader.h"
#include "server/backend/stream_event.h"
#include "server/backend/transport.h"
#include "server/rollout/sink_state.h"

namespace wsync {

struct ReceiveContext {
  const Plan& plan;
  Transport& transport;
  Loader& loader;
  // The coordinator bounds a transfer by size; this ends one that does not move at all, should the coordinator be stuck
  // as well.
  absl::Duration stall_timeout = absl::Seconds(30);
  std::atomic<int64_t>* bucket;                    // being waited for; for progress reports
  std::function<void(int64_t)> applied = nullptr;  // in place: called for each bucket once it is in live memory
  std::function<absl::Status()> paused = nullptr;  // in place: returns when live memory may be written; called once
};

// Receives every bucket into its place in `image` (plan.image_bytes() long) and checks it there.
sink::Received ReceiveImage(const ReceiveContext& context, std::byte* image);

// Receives into the slots of a RingLayout(plan, slots), one after the other, and applies each bucket to live memory
// once its check is good. A slot is filled again only when it was applied: the transport is told so, the host does not
// wait. The first buckets, one for each slot, come while the engine is still being paused: nothing is written, and no
// other bucket comes, before `paused` has returned. From then on a bucket that has a place of its own in `direct`
// (FindDirectBuckets; empty: none has) is received into that, and checked there. REQUIRES: none of the first has one.
// `wrote` says whether live memory may have been touched: with a direct bucket, from the pause on.
sink::Received ReceiveInPlace(const ReceiveContext& context, std::byte* ring, int32_t slots,
                              absl::Span<std::byte* const> direct = {});

// As ReceiveInPlace, without direct buckets, for an engine whose memory does not exist yet: `place` gets each checked
// bucket, in wire order, and returns when its bytes are where they belong, which may wait for the engine; `placed`
// comes behind the last one. Meanwhile as many buckets arrive as the ring has slots, and no more: a slow engine holds
// up the source, and on the cuda backend the other sinks. `wrote` speaks of what `loader` applied only.
sink::Received ReceiveWindowed(const ReceiveContext& context, std::byte* ring, int32_t slots,
                               const std::function<absl::Status(int64_t bucket, const std::byte* wire)>& place,
                               const std::function<absl::Status()>& placed);

// OK once the engine's stream has come to the point of its pause, and live memory may be written; DEADLINE_EXCEEDED
// past `limit`, or what `called_off` says first.
absl::Status AwaitEngine(StreamEvent& after, absl::Duration limit, const std::function<absl::Status()>& called_off);

// Copies a checked image to the destinations.
sink::ApplyDone ApplyImage(Loader& loader, const std::byte* image);

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_RECEIVE_PIPELINE_H_
