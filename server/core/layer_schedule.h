// In which order the layers of a plan come and go, for a sink that has memory for a few of them at a time only.
//
// A layer is open from its first byte on the wire to its last. Buckets hold the end of one layer and the begin of the
// next, and a catalog may interleave layers: within a bucket each layer's bytes are taken together, in the order of
// the layers' first bytes there, so open layers are as few as the catalog's order allows. The tensors of no layer (see
// layers.h) come in between at any time; they are never open, their memory always exists. Pure.
#ifndef WSYNC_SERVER_CORE_LAYER_SCHEDULE_H_
#define WSYNC_SERVER_CORE_LAYER_SCHEDULE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/core/layers.h"
#include "server/core/plan.h"

namespace wsync {

// All that one layer has within one bucket.
struct LayerVisit {
  int64_t layer = 0;
  bool first = false;  // of the layer's visits
  bool last = false;
};

class LayerSchedule {
 public:
  explicit LayerSchedule(const Plan& plan);

  int64_t layers() const { return static_cast<int64_t>(map_.names().size()); }  // with "", where it has bytes
  const std::string& name(int64_t layer) const { return map_.names()[layer]; }
  // Its output tensors, as indexes into Plan::outputs(), in wire order.
  const std::vector<int64_t>& outputs(int64_t layer) const { return outputs_[layer]; }
  int64_t bytes(int64_t layer) const { return map_.bytes()[layer]; }  // data and scales
  bool stays(int64_t layer) const { return name(layer).empty(); }
  absl::Span<const LayerVisit> VisitsOf(int64_t bucket) const;

  int64_t most_open() const { return most_open_; }    // layers that are open at once
  int64_t largest_bytes() const { return largest_; }  // of a layer that does not stay
  // INVALID_ARGUMENT where `window` layers at a time are too few for this order: names layers that are open at once.
  absl::Status CheckWindow(int64_t window) const;

 private:
  void CountOpen();

  const LayerMap map_;
  std::vector<std::vector<int64_t>> outputs_;
  std::vector<LayerVisit> visits_;
  std::vector<size_t> bucket_begin_;  // visits_[bucket_begin_[k], bucket_begin_[k + 1]) are in bucket k
  int64_t most_open_ = 0;
  int64_t largest_ = 0;
  std::vector<std::string> open_together_;  // where most_open_ was reached
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_LAYER_SCHEDULE_H_
