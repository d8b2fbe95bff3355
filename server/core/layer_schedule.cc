#include "server/core/layer_schedule.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/core/layers.h"

namespace wsync {

LayerSchedule::LayerSchedule(const Plan& plan) {
  absl::flat_hash_map<std::string_view, int64_t> index;
  std::vector<size_t> last_visit;
  for (const Bucket& bucket : plan.buckets()) {
    const size_t begin = visits_.size();
    bucket_begin_.push_back(begin);
    for (const Piece& piece : plan.PiecesOf(bucket)) {
      const std::string_view name = LayerOf(plan.catalog().tensors()[piece.tensor].name);
      const auto [found, is_new] = index.try_emplace(name, layers());
      const int64_t layer = found->second;
      if (is_new) {
        names_.emplace_back(name);
        bytes_.push_back(0);
        last_visit.push_back(visits_.size());
      }
      bytes_[layer] += piece.data_bytes + piece.scale_bytes;
      if (!is_new && last_visit[layer] >= begin) continue;  // its visit in this bucket began already
      last_visit[layer] = visits_.size();
      visits_.push_back({.layer = layer, .first = is_new});
    }
  }
  bucket_begin_.push_back(visits_.size());
  for (const size_t visit : last_visit) visits_[visit].last = true;
  outputs_.resize(names_.size());
  for (size_t i = 0; i < plan.outputs().size(); ++i) {
    const auto found = index.find(LayerOf(plan.catalog().tensors()[plan.outputs()[i].tensor].name));
    if (found != index.end()) outputs_[found->second].push_back(static_cast<int64_t>(i));
  }
  CountOpen();
}

void LayerSchedule::CountOpen() {
  std::vector<int64_t> open;
  for (const LayerVisit& visit : visits_) {
    if (stays(visit.layer)) continue;
    if (visit.first) open.push_back(visit.layer);
    if (static_cast<int64_t>(open.size()) > most_open_) {
      most_open_ = static_cast<int64_t>(open.size());
      open_together_.clear();
      for (const int64_t layer : open) open_together_.push_back(names_[layer]);
    }
    if (visit.last) std::erase(open, visit.layer);
    largest_ = std::max(largest_, bytes_[visit.layer]);
  }
}

absl::Span<const LayerVisit> LayerSchedule::VisitsOf(int64_t bucket) const {
  const size_t begin = bucket_begin_[bucket];
  return absl::MakeConstSpan(visits_).subspan(begin, bucket_begin_[bucket + 1] - begin);
}

absl::Status LayerSchedule::CheckWindow(int64_t window) const {
  if (window >= most_open_) return absl::OkStatus();
  constexpr size_t kShown = 4;
  const size_t shown = std::min(open_together_.size(), kShown);
  return absl::InvalidArgumentError(absl::StrCat(
      "layer_window ", window, " is too small for the order of this catalog, in which ", most_open_,
      " layers are under way at once: ", absl::StrJoin(open_together_.begin(), open_together_.begin() + shown, ", "),
      shown < open_together_.size() ? ", ..." : "", "; give layer_window ", most_open_,
      " or more, or let the trainer register its tensors layer by layer"));
}

}  // namespace wsync
