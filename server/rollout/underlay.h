// What a deep check lays under the bytes that it gathers from an engine's memory, to have a bucket as it was on the
// wire: the digest table that came with the bytes, and what no destination takes.
//
// In mode `staged` that is the staging copy. A sink in mode `in_place` has none, but 8 bytes per piece are little: it
// keeps the digest tables, by one copy more per bucket. That is enough for an engine that takes every byte, and too
// little for one that takes slices, whose pieces' other bytes are nowhere. Pure.
#ifndef WSYNC_SERVER_ROLLOUT_UNDERLAY_H_
#define WSYNC_SERVER_ROLLOUT_UNDERLAY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "server/core/destinations.h"
#include "server/core/plan.h"

namespace wsync {

struct Underlay {
  ScatterTable table;                // out of at[k], to the start of a bucket
  std::vector<const std::byte*> at;  // by bucket
};

Underlay UnderlayOfImage(const Plan& plan, const std::byte* image);

// `kept` has BytesOfDigestTables(plan) bytes, and every bucket's table by the copies that KeepDigestTables adds.
Underlay UnderlayOfDigestTables(const Plan& plan, const std::byte* kept);
int64_t BytesOfDigestTables(const Plan& plan);
// `table` with a copy of every bucket's digest table to handle `handle`. The table's `bytes` stay the engine's.
ScatterTable KeepDigestTables(const Plan& plan, const ScatterTable& table, int32_t handle);

// Whether the copies of `table` take every byte of every piece, in one run each: those of whole tensors do.
bool TakesEveryByte(const Plan& plan, const ScatterTable& table);

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_UNDERLAY_H_
