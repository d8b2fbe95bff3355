#include "server/core/layer_schedule.h"

#include <algorithm>
#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace wsync {

LayerSchedule::LayerSchedule(const Plan& plan) : map_(plan) {
  constexpr size_t kNone = SIZE_MAX;
  std::vector<size_t> last_visit(map_.names().size(), kNone);
  for (size_t bucket = 0; bucket < plan.buckets().size(); ++bucket) {
    const size_t begin = visits_.size();
    bucket_begin_.push_back(begin);
    for (const LayerPart& part : map_.PartsOf(static_cast<int64_t>(bucket))) {
      size_t& last = last_visit[part.layer];
      if (last != kNone && last >= begin) continue;  // its visit in this bucket began already
      visits_.push_back({.layer = part.layer, .first = last == kNone});
      last = visits_.size() - 1;
    }
  }
  bucket_begin_.push_back(visits_.size());
  for (const size_t visit : last_visit) visits_[visit].last = true;
  absl::flat_hash_map<std::string_view, int64_t> index;
  for (int64_t layer = 0; layer < layers(); ++layer) index.emplace(name(layer), layer);
  outputs_.resize(map_.names().size());
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
      for (const int64_t layer : open) open_together_.push_back(name(layer));
    }
    if (visit.last) std::erase(open, visit.layer);
    largest_ = std::max(largest_, bytes(visit.layer));
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
