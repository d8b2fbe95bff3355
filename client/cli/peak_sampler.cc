#include "client/cli/peak_sampler.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr absl::Duration kSampleEvery = absl::Milliseconds(20);

}  // namespace

PeakSampler::PeakSampler(size_t count, std::function<int64_t(size_t)> look)
    : look_(std::move(look)), peaks_(count, 0), thread_([this] { Run(); }) {}

std::vector<int64_t> PeakSampler::Stop() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  return peaks_;
}

void PeakSampler::Run() {
  pthread_setname_np(pthread_self(), "sampler");
  bool last = false;
  while (true) {
    for (size_t i = 0; i < peaks_.size(); ++i) peaks_[i] = std::max(peaks_[i], look_(i));
    if (last) return;
    MutexLock lock(&mu_);
    const absl::Time next = MonotonicNow() + kSampleEvery;
    while (!stopping_ && changed_.WaitUntil(&mu_, next)) {
    }
    last = stopping_;
  }
}

}  // namespace wsync::cli
