// How much memory an agent takes beside what trainer and engine hold anyway. Pure; printed by `wsync plan`. Running
// agents on the host backend are tested against it (within 10%); what it says of a GPU is from measurements
// (memory_estimate.cc).
//
// Counted is what the agent itself allocates. Memory that it maps from its client process (the source weights, the
// engine's destinations) is the client's, although tools that sum up resident pages show it twice.
#ifndef WSYNC_SERVER_CORE_MEMORY_ESTIMATE_H_
#define WSYNC_SERVER_CORE_MEMORY_ESTIMATE_H_

#include <cstdint>

#include "server/core/modes.h"
#include "server/core/plan.h"

namespace wsync {

struct MemoryEstimate {
  int64_t image_bytes = 0;    // the encoded copy of everything (full, staged)
  int64_t ring_bytes = 0;     // RingLayout of K slots (ring, in_place)
  int64_t tables_bytes = 0;   // catalog, plan, digests, copies: per tensor and piece
  int64_t process_bytes = 0;  // the daemon before any model: code, gRPC, threads
  int64_t total = 0;
};

// `ring_slots` is K, and ignored by kFull and kStaged.
MemoryEstimate EstimateSource(const Plan& plan, SourceMode mode, int64_t ring_slots);
MemoryEstimate EstimateSink(const Plan& plan, SinkMode mode, int64_t ring_slots);

// The same on the agent's GPU, backend cuda. `process_bytes` is CUDA's context and NCCL's buffers.
MemoryEstimate EstimateSourceOnGpu(const Plan& plan, SourceMode mode, int64_t ring_slots);
MemoryEstimate EstimateSinkOnGpu(const Plan& plan, SinkMode mode, int64_t ring_slots);

// Heap that the catalog and the plan take, on either side.
int64_t PlanTableBytes(const Plan& plan);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_MEMORY_ESTIMATE_H_
