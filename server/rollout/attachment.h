// One engine's destinations: its memory opened, and a Loader that writes into it, fitted to a plan.
//
// Used from the receiver's thread. Owns the mappings: they go when it goes.
#ifndef WSYNC_SERVER_ROLLOUT_ATTACHMENT_H_
#define WSYNC_SERVER_ROLLOUT_ATTACHMENT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/backend/backend.h"
#include "server/core/layers.h"
#include "server/core/modes.h"
#include "server/rollout/layer_window.h"

namespace wsync {

// What an engine asks for, as it came: nothing in it is believed yet.
struct AttachSpec {
  std::string engine;  // "vllm 0.11"
  int64_t pid = 0;
  std::vector<MemoryHandle> handles;
  std::vector<Destination> destinations;
  bool allow_partial = false;  // outputs that nobody takes are dropped instead of refused
  bool layer_events = false;   // wants to hear when each layer is complete
  // Above 0: the destinations of layers do not exist yet, and at most as many layers are lent at once; see LayerWindow.
  int64_t layer_window = 0;
};

class Attachment {
 public:
  // Opens every handle and fits the destinations to `plan`. Errors: those of Memory::Open with the handle's index, and
  // of BuildScatterTable (INVALID_ARGUMENT listing names) and LayerSchedule::CheckWindow. FAILED_PRECONDITION: a layer
  // window in another mode than in_place. `mode` says what Verify will find: see there. `ring_slots`: as ReceiveInPlace
  // will have them.
  static absl::StatusOr<std::unique_ptr<Attachment>> Create(Backend& backend, AttachSpec spec, SinkMode mode,
                                                            int32_t ring_slots, std::shared_ptr<const Plan> plan);

  // Fits the same destinations to another plan. On an error there is no loader until a Fit succeeds.
  absl::Status Fit(Backend& backend, std::shared_ptr<const Plan> plan);
  // Lets go of the plan it was fitted to.
  void Unfit() {
    loader_.reset();
    digests_.reset();
    direct_.clear();
    window_.reset();
  }

  // OK with the content digest if the engine's memory holds what was applied last; see DeepCheck. `image` is the
  // staging copy of that, and not looked at in mode in_place. FAILED_PRECONDITION: in that mode, an engine that takes
  // slices, or that has a layer window.
  absl::StatusOr<Hash128> Verify(Backend& backend, std::shared_ptr<const Plan> plan, const std::byte* image,
                                 std::function<bool()> interrupted) const;

  // Not OK: the engine cut memory that it lent, which nothing can be written to any more (FAILED_PRECONDITION).
  absl::Status CheckLent() const;

  Loader* loader() const { return loader_.get(); }          // null: not fitted
  const LayerMap* layers() const { return layers_.get(); }  // of that plan; null: not asked for
  // By bucket of that plan; see FindDirectBuckets.
  absl::Span<std::byte* const> direct() const { return direct_; }
  LayerWindow* window() const { return window_.get(); }  // null: all destinations exist
  const std::string& engine() const { return spec_.engine; }
  int64_t layer_window() const { return spec_.layer_window; }
  int64_t bytes_per_version() const { return bytes_per_version_; }

 private:
  Attachment(SinkMode mode, int32_t ring_slots) : mode_(mode), ring_slots_(ring_slots) {}
  absl::StatusOr<ScatterTable> MakeTable(const Plan& plan) const;
  absl::Status FitWindow(Backend& backend, const std::shared_ptr<const Plan>& plan);
  // Receives whole buckets to where they belong, and keeps digest tables, where that can be: takes from the table what
  // need not be copied, and adds what is kept.
  absl::Status FitInPlace(Backend& backend, const Plan& plan, ScatterTable* table, std::vector<std::byte*>* bases);
  std::vector<std::byte*> Bases() const;

  const SinkMode mode_;
  const int32_t ring_slots_;
  AttachSpec spec_;
  std::vector<std::unique_ptr<Buffer>> memory_;
  std::unique_ptr<Buffer>
      digests_;  // mode in_place: the digest tables of what is served; null: of slices they say nothing
  int64_t bytes_per_version_ = 0;
  std::vector<std::byte*> direct_;
  std::unique_ptr<const LayerMap> layers_;
  std::unique_ptr<LayerWindow> window_;
  std::unique_ptr<Loader> loader_;  // after memory: it must not outlive what it writes to
};

}  // namespace wsync

#endif  // WSYNC_SERVER_ROLLOUT_ATTACHMENT_H_
