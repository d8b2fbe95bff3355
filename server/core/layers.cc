#include "server/core/layers.h"

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"

namespace wsync {
namespace {

constexpr std::string_view kLayers = "layers.";

}  // namespace

std::string_view LayerOf(std::string_view tensor) {
  for (size_t at = tensor.find(kLayers); at != std::string_view::npos; at = tensor.find(kLayers, at + 1)) {
    if (at > 0 && tensor[at - 1] != '.') continue;  // "sublayers.3": another word
    size_t end = at + kLayers.size();
    while (end < tensor.size() && absl::ascii_isdigit(static_cast<unsigned char>(tensor[end]))) ++end;
    const bool numbered = end > at + kLayers.size() && end < tensor.size() && tensor[end] == '.';
    if (numbered) return tensor.substr(0, end);
  }
  return {};
}

LayerMap::LayerMap(const Plan& plan) {
  absl::flat_hash_map<std::string_view, int64_t> index;
  bucket_begin_.reserve(plan.buckets().size() + 1);
  for (const Bucket& bucket : plan.buckets()) {
    bucket_begin_.push_back(parts_.size());
    for (const Piece& piece : plan.PiecesOf(bucket)) {
      const std::string_view name = LayerOf(plan.catalog().tensors()[piece.tensor].name);
      const auto [found, is_new] = index.try_emplace(name, static_cast<int64_t>(names_.size()));
      if (is_new) {
        names_.emplace_back(name);
        bytes_.push_back(0);
      }
      const int64_t layer = found->second, bytes = piece.data_bytes + piece.scale_bytes;
      bytes_[layer] += bytes;
      if (parts_.size() == bucket_begin_.back() || parts_.back().layer != layer) parts_.push_back({layer, 0});
      parts_.back().bytes += bytes;
    }
  }
  bucket_begin_.push_back(parts_.size());
}

absl::Span<const LayerPart> LayerMap::PartsOf(int64_t bucket) const {
  const size_t begin = bucket_begin_[bucket];
  return absl::MakeConstSpan(parts_).subspan(begin, bucket_begin_[bucket + 1] - begin);
}

std::vector<LayerReady> LayerCount::Applied(int64_t bucket) {
  std::vector<LayerReady> complete;
  for (const LayerPart& part : map_.PartsOf(bucket)) {
    left_[part.layer] -= part.bytes;
    if (left_[part.layer] != 0) continue;
    complete.push_back({map_.names()[part.layer], ++ready_, static_cast<int64_t>(left_.size())});
  }
  return complete;
}

}  // namespace wsync
