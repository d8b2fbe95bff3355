// What GPUs reach without wsync, for a benchmark to stand beside: plain copies, and one ncclBroadcast.
#ifndef WSYNC_CLIENT_CLI_GPU_CEILINGS_H_
#define WSYNC_CLIENT_CLI_GPU_CEILINGS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace wsync::cli {

struct GpuCeilings {
  double copy_bytes_per_second = 0;  // read + written, of a device-to-device copy on the first device
  double payload_copy_ms = 0;        // device-to-device copy of the payload on the last device
  double broadcast_ms = 0;           // ncclBroadcast of the wire bytes in one call, from the first device to all others
};

// Medians, after one run each that warms up. A broadcast is timed from when every rank stands ready, a thread each as
// in real life, until the last one has all bytes.
absl::StatusOr<GpuCeilings> MeasureCeilings(const std::vector<int>& devices, int64_t payload_bytes, int64_t wire_bytes);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_GPU_CEILINGS_H_
