// Times whole syncs: real agents as processes, weights and engines behind the public local API.
#ifndef WSYNC_CLIENT_CLI_BENCH_SYNC_H_
#define WSYNC_CLIENT_CLI_BENCH_SYNC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/local_cluster.h"
#include "server/core/catalog.h"
#include "server/core/plan.h"

namespace wsync::cli {

struct SyncOptions {
  std::string name;  // shown in errors
  std::vector<Tensor> tensors;
  int rollouts = 2;
  int syncs = 5;  // measured, after one warm-up
  int64_t bucket_bytes = kDefaultBucketBytes;
  ConfigFlags trainer_flags;
  ConfigFlags rollout_flags;
};

struct AgentMemory {
  std::string agent;
  int64_t peak_bytes = 0;       // private: without what it shares with its client process
  int64_t predicted_bytes = 0;  // what `wsync plan` says
};

// Medians over the measured syncs.
struct SyncResult {
  std::string name;
  int64_t tensors = 0;
  int64_t quantized_tensors = 0;
  int64_t source_bytes = 0;
  int64_t payload_bytes = 0;
  int64_t buckets = 0;
  double encode_ms = 0;
  double transfer_ms = 0;  // slowest sink
  double check_ms = 0;
  double apply_ms = 0;
  double pause_ms = 0;
  double released_ms = 0;
  double staged_ms = 0;
  double committed_ms = 0;
  // What of publish -> committed, seen by the caller, the stages of the slowest sink (transfer, check, apply) do not
  // account for: messages, decisions, threads that wake.
  double control_ms = 0;
  std::vector<AgentMemory> memory;
  // Payload that reached each sink, verified, per second from publish to staged.
  double DeliveredBytesPerSecond() const { return static_cast<double>(payload_bytes) / staged_ms * 1e3; }
};

absl::StatusOr<SyncResult> MeasureSync(const SyncOptions& options);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_BENCH_SYNC_H_
