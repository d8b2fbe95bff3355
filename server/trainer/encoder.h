// The source's memory on the agent's side: encoder, image or ring, and what they belong to.
//
// Owned and used by the publisher's encode thread; only Cancel may come from elsewhere, and only between the first
// Encode of a version and the return of Finish.
#ifndef WSYNC_SERVER_TRAINER_ENCODER_H_
#define WSYNC_SERVER_TRAINER_ENCODER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/backend/backend.h"
#include "server/core/hash.h"
#include "server/core/modes.h"
#include "server/core/ring.h"
#include "server/trainer/registration.h"

namespace wsync {

// The buckets of a plan, each at its Bucket::image_offset. A view: the encoder owns the memory.
struct EncodedImage {
  std::shared_ptr<const Plan> plan;
  std::byte* data = nullptr;
};

class Encoder {
 public:
  Encoder(Backend* backend, SourceMode mode, int32_t ring_slots)
      : backend_(backend), mode_(mode), ring_slots_(ring_slots) {}

  // True when the memory that is held now serves this plan as well: what was encoded can still be sent.
  bool Fits(const Plan& plan) const { return memory_ != nullptr && plan_->hash() == plan.hash(); }
  // From now on encodes this registration's memory. After an error (RESOURCE_EXHAUSTED) nothing can be encoded.
  // REQUIRES: nothing is being encoded, and nothing is being sent unless Fits().
  absl::Status Adopt(std::shared_ptr<const Registration> registration);
  // Lets go of the registered memory; what was encoded stays.
  void Release();
  // Lets go of everything. REQUIRES: nothing is being encoded or sent.
  void Drop();

  bool can_encode() const { return quantizer_ != nullptr; }
  const Plan* plan_or_null() const { return plan_.get(); }
  const Plan& plan() const { return *plan_; }    // REQUIRES: Adopt succeeded since the last Drop
  int64_t slots() const { return ring_slots_; }  // ring mode: buckets that fit at a time

  // Full mode: everything that was encoded, until the next Drop.
  EncodedImage image() const { return {plan_, memory_->data()}; }
  // Where bucket `bucket` is encoded to and sent from.
  std::byte* Place(int64_t bucket) const;
  CompletionPtr Encode(int64_t bucket, CompletionPtr after);
  // The version's content digest, once no source byte will be read any more. Past `deadline` the encodes are cancelled.
  absl::StatusOr<Hash128> Finish(absl::Time deadline);
  void Cancel(const absl::Status& why) { quantizer_->Cancel(why); }

  // Starts encoding everything into one bucket, for the digest alone: Finish gives it. The image is untouched; a ring
  // must not be sent from.
  absl::Status EncodeForDigest();

 private:
  Backend* backend_;
  const SourceMode mode_;
  const int32_t ring_slots_;
  RingLayout ring_;
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<Buffer> memory_;   // image or ring
  std::unique_ptr<Buffer> scratch_;  // while EncodeForDigest runs
  std::shared_ptr<const Registration> registration_;
  std::unique_ptr<Quantizer> quantizer_;  // last: reads registration_, writes memory_
};

}  // namespace wsync

#endif  // WSYNC_SERVER_TRAINER_ENCODER_H_
