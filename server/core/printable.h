// Foreign text made safe to show. What files, peers and other users' names hold reaches terminals and logs through here
// and nowhere else: it must neither steer a terminal, nor begin a line of its own, nor be read in another order than it
// stands. Pure functions; every result is valid UTF-8.
#ifndef WSYNC_SERVER_CORE_PRINTABLE_H_
#define WSYNC_SERVER_CORE_PRINTABLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace wsync {

inline constexpr size_t kMaxShownBytes = 16 << 10;  // of one message: the longest lists of ours have some 4 KiB
inline constexpr size_t kMaxShownName = 512;        // of one name or cell: a tensor's name is no longer

// Bytes of the character that `text` begins with; 0 where that is not UTF-8 (RFC 3629: no overlong forms, no
// surrogates). REQUIRES: text is not empty.
size_t Utf8Length(std::string_view text);
char32_t CodePoint(std::string_view character);  // of one valid UTF-8 character

// One line: "\n", "\t" and the other control characters (C0, DEL, C1), line separators, marks and isolates that turn
// the direction of text, invisible tags, and bytes that are no UTF-8 become "\n", "\x1b", "\u202e". Everything else
// stays, names in any script among it. What is longer than `max_bytes` ends in "...".
std::string Printable(std::string_view text, size_t max_bytes = kMaxShownBytes);
// The same for what may have several lines: each but the first is indented, so that none looks like one of ours.
std::string PrintableLines(std::string_view text, size_t max_bytes = kMaxShownBytes);
// The same document with such characters as \uXXXX. REQUIRES: `json` is a JSON text in UTF-8.
std::string PrintableJson(std::string_view json);
// What our own code laid out: line breaks and colours stay, all else is escaped. Not cut.
std::string PrintableScreen(std::string_view text);

// Columns that `text` takes on a terminal: two for wide characters of East Asia and emoji, none for marks that combine
// with the one before, none for colours.
size_t VisibleWidth(std::string_view text);

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_PRINTABLE_H_
