// Re-digests what an engine's memory holds now, and compares it with what was sent.
//
// The bytes go the way back, destinations to a scratch bucket laid out as on the wire, and are checked there against
// the digest table that came with them, which lies in the underlay with all that no destination takes. Copies and
// checks are the backend's own, by Loaders made for the purpose.
#ifndef WSYNC_SERVER_ROLLOUT_DEEP_CHECK_H_
#define WSYNC_SERVER_ROLLOUT_DEEP_CHECK_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/backend/backend.h"
#include "server/rollout/underlay.h"

namespace wsync {

struct DeepCheckInput {
  std::shared_ptr<const Plan> plan;
  ScatterTable table;               // what Apply follows
  std::vector<std::byte*> handles;  // the memory that it names
  Underlay under;                   // of the version that was applied
  std::function<bool()> interrupted;
};

// The content digest of the whole. DATA_LOSS names tensor, rows and bucket that are not what was sent; ABORTED: it was
// interrupted; RESOURCE_EXHAUSTED: no room for the scratch bucket. Reads the engine's memory, writes none of it.
absl::StatusOr<Hash128> DeepCheck(Backend& backend, const DeepCheckInput& input);

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_DEEP_CHECK_H_
