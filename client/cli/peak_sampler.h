// A thread that looks at some quantities again and again, and keeps the largest value of each: memory during a
// benchmark.
//
// A peak shorter than the period between two looks may be missed.
#ifndef WSYNC_CLIENT_CLI_PEAK_SAMPLER_H_
#define WSYNC_CLIENT_CLI_PEAK_SAMPLER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/core/sync.h"

namespace wsync::cli {

class PeakSampler {
 public:
  // `look(i)` is called on the sampler's thread, for each i below `count`, every 20 ms: buffers live far longer.
  PeakSampler(size_t count, std::function<int64_t(size_t)> look);
  ~PeakSampler() { Stop(); }
  // Looks once more, and ends. The largest values; the same ones when called again.
  std::vector<int64_t> Stop();

 private:
  void Run();

  const std::function<int64_t(size_t)> look_;
  std::vector<int64_t> peaks_;  // of the thread until it is joined
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_PEAK_SAMPLER_H_
