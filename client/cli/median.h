// The median of what a benchmark measured. Pure.
#ifndef WSYNC_CLIENT_CLI_MEDIAN_H_
#define WSYNC_CLIENT_CLI_MEDIAN_H_

#include <algorithm>
#include <cstddef>
#include <vector>

namespace wsync::cli {

// Of an even number, the mean of the two in the middle; of none, 0.
inline double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_MEDIAN_H_
