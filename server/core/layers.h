// Which layer of the model every byte of the wire belongs to, and when a layer is complete.
//
// A layer is named by the prefix that its tensors share, "model.layers.17"; tensors of no layer (embeddings, the output
// head) are one more group, named "". Counted in bytes, data and scales: a tensor may be cut over several buckets, and
// a bucket holds the end of one layer and the begin of the next. Pure.
#ifndef WSYNC_SERVER_CORE_LAYERS_H_
#define WSYNC_SERVER_CORE_LAYERS_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "server/core/plan.h"

namespace wsync {

// "model.layers.17.mlp.up_proj.weight" -> "model.layers.17"; "" for a tensor of no layer.
std::string_view LayerOf(std::string_view tensor);

// One layer's bytes within one bucket.
struct LayerPart {
  int64_t layer = 0;
  int64_t bytes = 0;
};

class LayerMap {
 public:
  explicit LayerMap(const Plan& plan);

  const std::vector<std::string>& names() const { return names_; }  // in the order of their first byte on the wire
  const std::vector<int64_t>& bytes() const { return bytes_; }      // per layer; never 0
  absl::Span<const LayerPart> PartsOf(int64_t bucket) const;

 private:
  std::vector<std::string> names_;
  std::vector<int64_t> bytes_;
  std::vector<LayerPart> parts_;
  std::vector<size_t> bucket_begin_;  // parts_[bucket_begin_[k], bucket_begin_[k + 1]) are in bucket k
};

struct LayerReady {
  std::string name;
  int64_t ready = 0;    // layers complete, with this one
  int64_t layers = 0;   // of the plan
  uint64_t ticket = 0;  // with a layer window: by which the engine says that it has taken it
};

// Counts one version's bytes down. `map` must outlive it.
class LayerCount {
 public:
  explicit LayerCount(const LayerMap* map) : map_(*map), left_(map->bytes()) {}
  // `bucket` is in the engine's memory: the layers that are complete with it. REQUIRES: every bucket at most once.
  std::vector<LayerReady> Applied(int64_t bucket);

 private:
  const LayerMap& map_;
  std::vector<int64_t> left_;
  int64_t ready_ = 0;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_LAYERS_H_
