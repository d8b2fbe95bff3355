#include "client/cli/bench_encoder.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/demo_model.h"
#include "kernels/quantize.h"
#include "kernels/streaming.h"
#include "server/core/clock.h"

namespace wsync::cli {
namespace {

constexpr int64_t kCols = 4096;  // a usual hidden size

template <typename Body>
double SecondsOf(Body body) {
  const absl::Time start = MonotonicNow();
  body();
  return absl::ToDoubleSeconds(MonotonicNow() - start);
}

}  // namespace

EncoderResult MeasureEncoder(const Recipe& recipe, int megabytes, int repeats) {
  const int64_t rows = std::max<int64_t>(RoundUp(megabytes * int64_t{1'000'000} / 2 / kCols, kBlockSize), kBlockSize);
  const int64_t count = rows * kCols;
  std::vector<std::byte> source(2 * count);
  std::vector<std::byte> codes(count);
  std::vector<std::byte> scales(4 * ScaleRows(recipe.granularity, rows) * ScaleCols(recipe.granularity, kCols));
  FillRandomBf16(source.data(), count, 1);
  EncodeTask task;
  task.source = source.data();
  task.rows = rows;
  task.cols = kCols;
  task.recipe = recipe;
  task.data = codes.data();
  task.scales = scales.data();
  double encode = 1e9;
  double ceiling = 1e9;
  for (int i = 0; i < repeats; ++i) {
    encode = std::min(encode, SecondsOf([&] {
                        if (recipe.granularity == Granularity::kTensor) {
                          task.tensor_amax = AbsMax(task.source, task.dtype, 0, rows, kCols).amax;
                        }
                        (void)Encode(task);
                      }));
    ceiling = std::min(ceiling, SecondsOf([&] { StreamRead2Write1(source.data(), codes.data(), count); }));
  }
  EncoderResult result;
  result.encode_bytes_per_second = 2.0 * static_cast<double>(count) / encode;
  result.ceiling_bytes_per_second = 2.0 * static_cast<double>(count) / ceiling;
  result.simd = SimdLevel();
  return result;
}

}  // namespace wsync::cli
