#include "server/rpc/log.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/core/clock.h"
#include "server/core/printable.h"
#include "server/core/sync.h"
#include "server/rpc/errno_text.h"
#include "server/rpc/log_limiter.h"

namespace wsync {
namespace {

using Level = spdlog::level::level_enum;

struct Output {
  std::shared_ptr<spdlog::logger> logger;
  std::string component;
  bool json = false;
};

std::string Timestamp() { return absl::FormatTime("%Y-%m-%d%ET%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()); }

const char* LevelName(Level level) {
  switch (level) {
    case Level::trace:
      return "trace";
    case Level::debug:
      return "debug";
    case Level::warn:
      return "warn";
    case Level::err:
      return "error";
    default:
      return "info";
  }
}

std::optional<Level> ParseLevel(const std::string& name) {
  for (const Level level : {Level::trace, Level::debug, Level::info, Level::warn, Level::err}) {
    if (name == LevelName(level)) return level;
  }
  return std::nullopt;
}

// ---- text

// A peer's text must not be able to begin a line of its own or to steer a terminal, nor fill the disk by itself.
constexpr size_t kMaxTextBytes = 8 << 10;

std::string Escaped(std::string_view text) { return Printable(text, kMaxTextBytes); }

// Bare where that is unambiguous; else in quotes, with quotes and backslashes escaped.
std::string TextValue(const std::string& value) {
  const bool bare = !value.empty() && value.find_first_of(" =\"\\") == std::string::npos;
  if (bare) return Escaped(value);
  std::string quoted = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return Escaped(quoted) + "\"";
}

std::string TextLine(const Output& output, Level level, std::string_view message, const LogFields& fields) {
  std::string line = absl::StrFormat("%s %-6s", Timestamp(), LevelName(level));
  line += output.component;
  if (!output.component.empty()) line += "  ";
  line += Escaped(message);
  const char* separator = "  ";
  for (const auto& [key, value] : fields) {
    absl::StrAppend(&line, separator, std::string(key), "=", TextValue(value));
    separator = " ";
  }
  return line;
}

// ---- JSON

std::string Bounded(const std::string& text) {
  return text.size() > kMaxTextBytes ? text.substr(0, kMaxTextBytes) + "..." : text;
}

std::string JsonLine(const Output& output, Level level, std::string_view message, const LogFields& fields) {
  nlohmann::ordered_json line;
  line["time"] = Timestamp();
  line["level"] = LevelName(level);
  line["component"] = output.component;
  line["message"] = Bounded(std::string(message));
  for (const auto& [key, value] : fields) {
    std::string name(key);
    while (line.contains(name)) name += '_';  // a field never hides the line's own keys, nor another field
    line[name] = Bounded(value);
  }
  constexpr int kCompact = -1;
  return PrintableJson(line.dump(kCompact, ' ', false, nlohmann::json::error_handler_t::replace));
}

// ---- the process's one log

std::shared_ptr<const Output> MakeOutput(spdlog::sink_ptr sink, Level level, std::string component, bool json) {
  auto output = std::make_shared<Output>();
  output->logger = std::make_shared<spdlog::logger>("wsync", std::move(sink));
  output->logger->set_formatter(
      std::make_unique<spdlog::pattern_formatter>("%v", spdlog::pattern_time_type::utc, "\n"));
  output->logger->set_level(level);
  // At info a version is one line: cheap to flush, and a killed agent must not take its last words with it.
  output->logger->flush_on(Level::info);
  output->component = std::move(component);
  output->json = json;
  return output;
}

Mutex& OutputMutex() {
  static Mutex* const mu = new Mutex;  // never destroyed: threads may log while the process exits
  return *mu;
}

std::shared_ptr<const Output>& OutputSlot() {
  static auto* const slot = new std::shared_ptr<const Output>(
      MakeOutput(std::make_shared<spdlog::sinks::stderr_sink_mt>(), Level::info, "", false));
  return *slot;
}

LogOptions& CurrentOptions() {  // under OutputMutex
  static auto* const options = new LogOptions;
  return *options;
}

std::shared_ptr<const Output> CurrentOutput() {
  MutexLock lock(&OutputMutex());
  return OutputSlot();
}

Mutex& LimiterMutex() {
  static Mutex* const mu = new Mutex;
  return *mu;
}

LogLimiter& Limiter() {
  static LogLimiter* const limiter = new LogLimiter({});
  return *limiter;
}

void WriteLine(const Output& output, Level level, std::string_view message, const LogFields& fields) {
  output.logger->log(level, spdlog::string_view_t(output.json ? JsonLine(output, level, message, fields)
                                                              : TextLine(output, level, message, fields)));
}

void WriteLeftOut(const Output& output, const std::vector<LogLimiter::LeftOut>& all) {
  for (const LogLimiter::LeftOut& left_out : all) {
    const std::string like = left_out.cause.empty() ? "of many kinds" : absl::StrCat("like \"", left_out.cause, "\"");
    WriteLine(output, Level::warn, absl::StrCat("and ", left_out.lines, " more lines ", like, " in 10 s"),
              {{"left_out", absl::StrCat(left_out.lines)}});
  }
}

// `cause`: of lines that are alike; those of another level are not.
void Write(Level level, std::string_view cause, std::string_view message, const LogFields& fields) {
  const std::shared_ptr<const Output> output = CurrentOutput();
  if (!output->logger->should_log(level)) return;
  const absl::Time now = MonotonicNow();
  std::vector<LogLimiter::LeftOut> left_out;
  bool admitted = false;
  {
    MutexLock lock(&LimiterMutex());
    left_out = Limiter().Over(now);
    admitted = Limiter().Admit(absl::StrCat(LevelName(level), " ", std::string(cause)), now);
  }
  WriteLeftOut(*output, left_out);
  if (admitted) WriteLine(*output, level, message, fields);
}

void Write(Level level, std::string_view message, const LogFields& fields) {
  Write(level, CauseOf(message), message, fields);
}

// spdlog reports a failed open by an exception without errno, after retries: so it is tried first.
absl::Status CheckWritable(const std::string& file) {
  const int fd = open(file.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    const int error = errno;
    return absl::Status(absl::ErrnoToStatusCode(error),
                        absl::StrCat("cannot open log file ", file, ": ", ErrnoText(error),
                                     "; set log.file to a path that can be written, or leave it empty for stderr"));
  }
  close(fd);
  return absl::OkStatus();
}

}  // namespace

absl::Status InitLog(const LogOptions& options) {
  const std::optional<Level> level = ParseLevel(options.level);
  if (!level.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("log.level: \"", options.level,
                                                   "\" is unknown; expected one of: trace, debug, info, warn, error"));
  }
  if (options.format != "text" && options.format != "json") {
    return absl::InvalidArgumentError(
        absl::StrCat("log.format: \"", options.format, "\" is unknown; expected one of: text, json"));
  }
  spdlog::sink_ptr sink;
  if (options.file.empty()) {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    if (absl::Status s = CheckWritable(options.file); !s.ok()) return s;
    try {
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
    } catch (const spdlog::spdlog_ex& e) {  // it went away since
      return absl::UnavailableError(absl::StrCat("cannot open log file ", options.file, ": ", e.what()));
    }
  }
  auto output = MakeOutput(std::move(sink), *level, options.component, options.format == "json");
  MutexLock lock(&OutputMutex());
  OutputSlot() = std::move(output);
  CurrentOptions() = options;
  return absl::OkStatus();
}

absl::Status ReopenLog() {
  LogOptions options;
  {
    MutexLock lock(&OutputMutex());
    options = CurrentOptions();
  }
  return options.file.empty() ? absl::OkStatus() : InitLog(options);
}

void TellLeftOutOfLog() {
  std::vector<LogLimiter::LeftOut> left_out;
  {
    MutexLock lock(&LimiterMutex());
    left_out = Limiter().Over(MonotonicNow());
  }
  if (!left_out.empty()) WriteLeftOut(*CurrentOutput(), left_out);
}

void LogWarnFrom(std::string_view cause, std::string_view message, const LogFields& fields) {
  Write(Level::warn, cause, message, fields);
}
void LogDebugFrom(std::string_view cause, std::string_view message, const LogFields& fields) {
  Write(Level::debug, cause, message, fields);
}

void LogDebug(std::string_view message, const LogFields& fields) { Write(Level::debug, message, fields); }
void LogInfo(std::string_view message, const LogFields& fields) { Write(Level::info, message, fields); }
void LogWarn(std::string_view message, const LogFields& fields) { Write(Level::warn, message, fields); }
void LogError(std::string_view message, const LogFields& fields) { Write(Level::err, message, fields); }

}  // namespace wsync
