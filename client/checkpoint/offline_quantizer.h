// `wsync quantize` without a daemon: a BF16 checkpoint in, an FP8 checkpoint out, as the agents would encode it.
//
// The plan decides what is quantized and where tensors are cut, the kernels encode each piece, so the bytes equal those
// a sink receives. Pieces of a few MiB go through several threads; memory does not grow with the model. All or
// nothing: after any error nothing exists under the output's name.
#ifndef WSYNC_CLIENT_CHECKPOINT_OFFLINE_QUANTIZER_H_
#define WSYNC_CLIENT_CHECKPOINT_OFFLINE_QUANTIZER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/checkpoint/checkpoint.h"
#include "client/checkpoint/checkpoint_writer.h"
#include "server/core/recipe.h"

namespace wsync {

struct QuantizeProgress {
  int64_t bytes_done = 0;  // read from the source; per-tensor scales need two passes, and both count
  int64_t bytes_total = 0;
  absl::Duration elapsed;
};

struct QuantizeOptions {
  RecipeRules rules;  // what the checkpoint's config.json keeps is added to them
  int threads = 0;    // 0: one per core
  int64_t max_shard_bytes = kDefaultShardBytes;
  bool overwrite = false;                                 // see CheckpointOptions
  std::function<void(const QuantizeProgress&)> progress;  // called on the calling thread, about ten times a second
  const std::atomic<bool>* cancel = nullptr;              // set by the caller, e.g. on SIGINT: ends with CANCELLED
};

struct QuantizeReport {
  int64_t tensors = 0;  // in the source
  int64_t quantized_tensors = 0;
  int64_t bytes_in = 0;
  int64_t bytes_out = 0;  // data and scales
  absl::Duration elapsed;
  std::vector<std::string> shards;
  std::vector<std::string> notes;  // for the user: what was left out or could not be honoured
};

// INVALID_ARGUMENT: a NaN or infinity (tensor and first index named, the same with any number of threads), bad rules, a
// checkpoint that already is quantized in a way that cannot be mixed with the one asked for. Else as CheckpointWriter.
absl::StatusOr<QuantizeReport> QuantizeCheckpoint(const Checkpoint& checkpoint, const std::string& out_dir,
                                                  const QuantizeOptions& options);

}  // namespace wsync

#endif  // WSYNC_CLIENT_CHECKPOINT_OFFLINE_QUANTIZER_H_
