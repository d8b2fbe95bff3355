// Numbers with units as configuration writes them. Pure.
#ifndef WSYNC_SERVER_RPC_CONFIG_UNITS_H_
#define WSYNC_SERVER_RPC_CONFIG_UNITS_H_

#include <cstdint>
#include <optional>
#include <string>

namespace wsync {

enum class UnitFault { kMalformed, kTooLarge };
struct ParsedNumber {
  int64_t value = 0;
  std::optional<UnitFault> fault;
};

ParsedNumber ParseInteger(const std::string& text);   // "12", "-3"
ParsedNumber ParseSize(const std::string& text);      // bytes: "12", "64KiB", "256 MiB", "8GiB", "1TiB"
ParsedNumber ParseDuration(const std::string& text);  // milliseconds: "500ms", "3s", "2min"; a plain number is ms

// The largest unit that divides the value: "256MiB", "3s", "2min", "1500ms", "7".
std::string SizeText(int64_t bytes);
std::string DurationText(int64_t ms);

}  // namespace wsync

#endif  // WSYNC_SERVER_RPC_CONFIG_UNITS_H_
