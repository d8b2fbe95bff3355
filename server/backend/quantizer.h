// Source side: encodes buckets of registered weights into wire memory, with digests.
//
// Used from one thread. One instance serves one registration; versions follow one another:
// Encode(bucket...) for every bucket once, in any order, then Finish: also after a failure or a Cancel, since it is
// Finish that clears them.
#ifndef WSYNC_SERVER_BACKEND_QUANTIZER_H_
#define WSYNC_SERVER_BACKEND_QUANTIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/backend/completion.h"
#include "server/core/plan.h"

namespace wsync {

class Quantizer {
 public:
  virtual ~Quantizer() = default;
  // Starts encoding bucket `bucket` of the plan into `wire` (Bucket::wire_bytes long: data, scales and digest table;
  // padding is left as it is) once `after` is done. The completion fails with INVALID_ARGUMENT naming tensor and index
  // on a NaN or infinity. On a device where that is only known later it may succeed; Finish then says it.
  virtual CompletionPtr Encode(int64_t bucket, std::byte* wire, CompletionPtr after) = 0;
  // Waits until no source byte will be read any more, and returns the digests of all pieces encoded since the last
  // Finish, by piece index (pieces of buckets that were not encoded: 0), good until the next call. Errors: as Encode,
  // or DEADLINE_EXCEEDED.
  // Also after an error nothing reads the source any more once Finish returned, except after DEADLINE_EXCEEDED.
  virtual absl::StatusOr<absl::Span<const uint64_t>> Finish(absl::Time deadline) = 0;
  // Makes encodes that have not begun fail with `why` and finish soon, those to come too, until Finish returns with
  // anything but DEADLINE_EXCEEDED. Any thread.
  virtual void Cancel(const absl::Status& why) = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_BACKEND_QUANTIZER_H_
