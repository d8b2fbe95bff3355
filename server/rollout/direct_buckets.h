// Which buckets a sink in mode in_place receives straight into the engine's memory: no ring slot, no copy.
//
// Every rank of a broadcast moves the whole bucket, its digest table with it, so a bucket can land where it belongs
// only if one run of live memory, and no other place, takes its data as they lie on the wire, and if that run goes on:
// what lands behind the data, the digest table, must fall on bytes that the next bucket brings. That is how a large
// tensor lies that is not quantized (embeddings, lm_head), where it fills whole buckets and its engine holds it in one
// piece. Quantized tensors never do: their scales lie between their data on the wire.
//
// The next bucket must not be received over a digest table that is still to be read, so of two neighbours one goes
// through the ring, whose copy comes after the check of the bucket before it. Pure.
#ifndef WSYNC_SERVER_ROLLOUT_DIRECT_BUCKETS_H_
#define WSYNC_SERVER_ROLLOUT_DIRECT_BUCKETS_H_

#include <cstddef>
#include <vector>

#include "absl/types/span.h"
#include "server/core/destinations.h"
#include "server/core/plan.h"

namespace wsync {

// By bucket: where it is received to, or null: through the ring, as all before `first` are, which come while the engine
// may still read its memory. `handles[i]` is the base of the memory that ScatterCopy::handle i names. REQUIRES: `table`
// was built for this plan, and that memory.
std::vector<std::byte*> FindDirectBuckets(const Plan& plan, const ScatterTable& table,
                                          absl::Span<std::byte* const> handles, size_t first);

// `table` without the copies of those buckets: their bytes are where they belong. Its `bytes` stay the engine's.
ScatterTable WithoutDirectBuckets(const ScatterTable& table, absl::Span<std::byte* const> direct);

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_DIRECT_BUCKETS_H_
