// Which lines of a log are written when one cause floods it: a stranger that sends garbage to a port, a peer that is
// refused and comes again at once. So many of each cause in a period; how many more there were is told afterwards.
//
// Pure: time is an argument. Not thread-safe.
#ifndef WSYNC_SERVER_RPC_LOG_LIMITER_H_
#define WSYNC_SERVER_RPC_LOG_LIMITER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"

namespace wsync {

// What a line's text has in common with others that are like it: numbers are left out, and what is in quotes, and all
// but the first 64 bytes.
std::string CauseOf(std::string_view text);

class LogLimiter {
 public:
  struct Options {
    int64_t lines = 200;  // of one cause in one period: more than a job that is busy and well writes
    absl::Duration period = absl::Seconds(10);
    // Told apart at a time. A flood that makes up causes shares what the rest of them have: as much as one.
    size_t causes = 256;
  };
  explicit LogLimiter(Options options) : options_(options) {}

  // Whether a line of this cause is written now.
  bool Admit(std::string_view cause, absl::Time now);

  struct LeftOut {
    std::string cause;  // "": made-up ones
    int64_t lines = 0;
  };
  // Of periods that are over; each is told once. Cheap when there are none.
  std::vector<LeftOut> Over(absl::Time now);

 private:
  struct Period {
    absl::Time end;
    int64_t lines = 0;  // that came
  };
  Period& PeriodOf(std::string_view cause, absl::Time now);

  const Options options_;
  std::map<std::string, Period, std::less<>> periods_;
  absl::Time next_end_ = absl::InfiniteFuture();  // the first end of all periods
};

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_LOG_LIMITER_H_
