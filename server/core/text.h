// Numbers as people read them, the same in logs, status and commands. Pure.
#ifndef WSYNC_SERVER_CORE_TEXT_H_
#define WSYNC_SERVER_CORE_TEXT_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace wsync {

std::string FormatBytes(double bytes);                  // "630.2 MB" (powers of 1000, as rates are)
std::string FormatMs(double ms);                        // "0.04 ms", "0.8 ms", "25 ms", "1.20 s", "2 min 3 s"
std::string FormatCount(int64_t n);                     // "18,867"
std::string Counted(int64_t n, std::string_view noun);  // "1 tensor", "18,867 tensors"

// The first two lines as one, for a table: what went wrong, and the first case of it. Of more, how many there are.
std::string Shortened(std::string_view lines);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_TEXT_H_
