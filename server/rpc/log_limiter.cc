#include "server/rpc/log_limiter.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace wsync {
namespace {

constexpr size_t kMaxCauseBytes = 64;

}  // namespace

std::string CauseOf(std::string_view text) {
  std::string cause;
  char quote = 0;
  for (const char c : text.substr(0, 4 * kMaxCauseBytes)) {
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) {
      cause += c;
    }
    if (cause.size() == kMaxCauseBytes) break;
  }
  return cause;
}

LogLimiter::Period& LogLimiter::PeriodOf(std::string_view cause, absl::Time now) {
  auto it = periods_.find(cause);
  if (it == periods_.end()) {
    const std::string key = periods_.size() < options_.causes ? std::string(cause) : std::string();
    it = periods_.try_emplace(key, Period{now + options_.period}).first;
    next_end_ = std::min(next_end_, it->second.end);
  }
  return it->second;
}

bool LogLimiter::Admit(std::string_view cause, absl::Time now) {
  return ++PeriodOf(cause, now).lines <= options_.lines;
}

std::vector<LogLimiter::LeftOut> LogLimiter::Over(absl::Time now) {
  std::vector<LeftOut> left_out;
  if (now < next_end_) return left_out;
  next_end_ = absl::InfiniteFuture();
  for (auto it = periods_.begin(); it != periods_.end();) {
    if (now < it->second.end) {
      next_end_ = std::min(next_end_, it->second.end);
      ++it;
      continue;
    }
    if (it->second.lines > options_.lines) left_out.push_back({it->first, it->second.lines - options_.lines});
    it = periods_.erase(it);
  }
  return left_out;
}

}  // namespace wsync
