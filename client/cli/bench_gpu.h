// Times whole syncs between GPUs: real agents, a feeder and engines as processes (bench_peers.h), and in the same run
// what the same GPUs reach without us.
#ifndef WSYNC_CLIENT_CLI_BENCH_GPU_H_
#define WSYNC_CLIENT_CLI_BENCH_GPU_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/gpu_ceilings.h"
#include "client/cli/local_cluster.h"

namespace wsync::cli {

struct GpuBenchOptions {
  std::string shapes;        // a known model's name
  std::string model;         // or a checkpoint directory; empty: random weights
  std::vector<int> devices;  // the trainer's, then each rollout's
  std::string source_mode = "full";
  std::string sink_mode = "staged";
  int syncs = 20;             // measured, after some that warm up
  ConfigFlags trainer_flags;  // beside the modes
  ConfigFlags rollout_flags;
};

// Medians over the measured syncs; of rollouts the slowest. Times in milliseconds.
struct GpuBenchResult {
  GpuBenchOptions options;
  std::vector<std::string> device_names;
  int64_t tensors = 0, quantized_tensors = 0, buckets = 0;
  int64_t source_bytes = 0, payload_bytes = 0, wire_bytes = 0;
  double register_ms = 0, attach_ms = 0;
  double quantize_ms = 0, wire_ms = 0, verify_ms = 0, apply_ms = 0;  // the agents' own clocks
  double released_ms = 0, committed_ms = 0;                          // publish to the event, at the feeder
  double staged_ms = 0;                                              // the same at the coordinator
  double applied_ms = 0;  // publish at the feeder to the last engine that hears that it may serve the version
  double pause_ms = 0;    // at the engine
  // What of publish -> committed no stage accounts for: its total less wire, verify and apply of the slowest sink, sync
  // by sync. Messages, decisions, threads that wake, the engine's answers; and, the wire being timed by a sink, nothing
  // of the encoding but what happens before that sink begins to receive.
  double control_ms = 0;
  // Of GPUs, from nvidia-smi and cudaMemGetInfo.
  struct AgentMemory {
    std::string agent;
    int64_t device_bytes = -1;  // the process', after the last sync; -1: nvidia-smi does not tell
    // The largest that was sampled from the first sync on, of its whole GPU: client process and benchmark included.
    int64_t gpu_peak_bytes = 0;
    // That peak above what the whole GPU held when device_bytes was read.
    int64_t gpu_rise_bytes = 0;
    // At most this was the agent's, unless another process gave memory back meanwhile. -1: not known.
    int64_t peak_bytes() const { return device_bytes < 0 ? -1 : device_bytes + gpu_rise_bytes; }
  };
  std::vector<AgentMemory> memory;
  GpuCeilings ceilings;

  // Bytes read and written by the quantizer per second, against the copy's.
  double QuantizeRatio() const;
};

absl::StatusOr<GpuBenchResult> MeasureGpuSync(const GpuBenchOptions& options);
void PrintTable(const GpuBenchResult& result);
void PrintJson(const GpuBenchResult& result);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_BENCH_GPU_H_
