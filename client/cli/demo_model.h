// Weights for demo and bench: random ones of a known model's shapes, and small changes to them, as a training step
// makes.
#ifndef WSYNC_CLIENT_CLI_DEMO_MODEL_H_
#define WSYNC_CLIENT_CLI_DEMO_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/checkpoint/model_shapes.h"
#include "client/checkpoint/strict_json.h"
#include "client/cli/shared_model.h"

namespace wsync::cli {

// Fills `count` BF16 elements with normal values of standard deviation 0.02, as initialised linear layers have; the
// same for the same seed.
void FillRandomBf16(std::byte* data, int64_t count, uint64_t seed);

// Moves about one in `one_in` BF16 elements by one unit in the last place, as a small learning rate does.
// Returns how many changed.
int64_t PerturbBf16(std::byte* data, int64_t count, int64_t one_in, uint64_t seed);

// A checkpoint directory of a known model with random weights.
absl::Status WriteRandomCheckpoint(const std::string& model, const std::string& directory);

// Fills / perturbs every BF16 tensor of a registered model.
void FillRandom(SharedModel& model, uint64_t seed);
int64_t Perturb(SharedModel& model, int64_t one_in, uint64_t seed);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_DEMO_MODEL_H_
