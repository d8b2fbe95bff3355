// Sink side: checks what landed against its digests, and copies it to its destinations.
//
// Used from one thread. What is started first, and has its `after` first, is done first: a check may look at memory
// that a later apply writes. One instance serves one (plan, destinations) pair, version after version, until it is
// retargeted; Finish ends each, also a failed one, and between two of them every bucket is checked at most once. A
// check sees what changed within a bucket, not that a whole bucket is in another's place: versions are compared by
// Plan::ContentDigest of what Finish returns.
#ifndef WSYNC_SERVER_BACKEND_LOADER_H_
#define WSYNC_SERVER_BACKEND_LOADER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/backend/completion.h"
#include "server/core/destinations.h"
#include "server/core/plan.h"

namespace wsync {

class Loader {
 public:
  virtual ~Loader() = default;
  // Digests every piece of a bucket at `wire` once `after` is done and compares with the bucket's digest table. The
  // completion fails with DATA_LOSS naming tensor, rows and bucket, or with `after`'s error.
  virtual CompletionPtr Check(int64_t bucket, const std::byte* wire, CompletionPtr after) = 0;
  // Copies a bucket's pieces to their destinations once `after` is done. `after` the bucket's own Check, it writes
  // nothing when that failed.
  virtual CompletionPtr Apply(int64_t bucket, const std::byte* wire, CompletionPtr after) = 0;
  // From now on Apply copies to these places, and nothing refers to the old ones any more. No table: nowhere. Errors as
  // NewLoader's, and then there are no places. REQUIRES: nothing was started since the last Finish.
  virtual absl::Status Retarget(ScatterTable table, std::vector<std::byte*> handles) = 0;
  // Copies a whole version, every bucket at its Bucket::image_offset in `image`, once `after` is done.
  // REQUIRES: what is there was checked, and Finish said that it is good.
  virtual CompletionPtr ApplyAll(const std::byte* image, CompletionPtr after) = 0;
  // Waits for everything started; digests of all pieces checked since the last Finish, by piece index, good until the
  // next call. Else the first error since then, or DEADLINE_EXCEEDED, after which it can be called again.
  virtual absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) = 0;
  // Of what the last Finish waited for: whether an apply may have written anything. An apply can have written although
  // its completion failed, when what failed was found out too late. True, too, when Finish left an apply undone.
  virtual bool wrote() const = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_LOADER_H_
