// Where buckets lie in a ring of K slots: bucket k goes to slot k % K, and a slot is as large as the largest bucket
// that comes to it. One layout for the source's ring, the sink's, and the estimate of their memory. Pure.
#ifndef WSYNC_SERVER_CORE_RING_H_
#define WSYNC_SERVER_CORE_RING_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "server/core/plan.h"

namespace wsync {

class RingLayout {
 public:
  RingLayout() : offsets_(2, 0) {}
  // REQUIRES: slots >= 1. A plan with fewer buckets than slots leaves the rest empty.
  RingLayout(const Plan& plan, int64_t slots) : offsets_(static_cast<size_t>(slots) + 1, 0) {
    for (size_t k = 0; k < plan.buckets().size(); ++k) {
      int64_t& size = offsets_[k % static_cast<size_t>(slots) + 1];
      size = std::max(size, plan.buckets()[k].wire_bytes);
    }
    for (size_t slot = 1; slot < offsets_.size(); ++slot) offsets_[slot] += offsets_[slot - 1];
  }
  int64_t bytes() const { return offsets_.back(); }
  int64_t OffsetOf(int64_t bucket) const { return offsets_[static_cast<size_t>(bucket) % (offsets_.size() - 1)]; }

 private:
  std::vector<int64_t> offsets_;  // of each slot, and the end
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_RING_H_
