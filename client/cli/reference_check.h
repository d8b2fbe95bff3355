// Checks an exported FP8 checkpoint against the BF16 weights it came from, with arithmetic of its own: nothing here
// uses the encoder, its decoder or its digests.
#ifndef WSYNC_CLIENT_CLI_REFERENCE_CHECK_H_
#define WSYNC_CLIENT_CLI_REFERENCE_CHECK_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "client/checkpoint/checkpoint.h"
#include "client/cli/shared_model.h"

namespace wsync::cli {

struct ReferenceReport {
  int64_t quantized_tensors = 0;
  int64_t quantized_values = 0;
  int64_t identical_tensors = 0;    // moved as they are, byte for byte equal
  double worst_relative_error = 0;  // |w - code*scale| / |w| over values in E4M3's normal range
};

// Block-scaled checkpoints. Every value must lie within half a unit in the last place of E4M3 at its scale, every other
// tensor must be byte-equal. DATA_LOSS names the first tensor and element that is not.
absl::StatusOr<ReferenceReport> CheckAgainstSource(SharedModel& source, const Checkpoint& exported);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_REFERENCE_CHECK_H_
