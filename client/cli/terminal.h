// How things look on a terminal: colour only where a person looks, units people read, tables that line up.
#ifndef WSYNC_CLIENT_CLI_TERMINAL_H_
#define WSYNC_CLIENT_CLI_TERMINAL_H_

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "server/core/text.h"

namespace wsync::cli {

enum class Color { kNone, kGreen, kYellow, kRed, kDim, kBold };

// True when `stream` is a terminal, NO_COLOR is unset or empty, and TERM is not "dumb".
bool UseColor(std::FILE* stream);
bool IsTerminal(std::FILE* stream);
int TerminalWidth();   // columns of stdout; 100 where it is not a terminal
int TerminalHeight();  // rows of stdout; 0 where it is not a terminal
std::string Paint(std::string_view text, Color color, bool use_color);

std::string FormatRate(double bytes_per_second);  // "1.24 GB/s"
std::string FormatAge(double seconds);            // "3 s", "5 min", "2 h", "4 d"

// Left-aligned text, right-aligned numbers; widths by visible characters, so painted cells line up.
class Table {
 public:
  explicit Table(std::vector<std::string> header);
  void AlignRight(size_t column);
  void Add(std::vector<std::string> row);
  bool empty() const { return rows_.empty(); }
  // Two spaces between columns, no trailing spaces; the header in bold where `use_color`.
  std::string Render(bool use_color) const;

 private:
  std::vector<std::string> header_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

size_t VisibleWidth(std::string_view text);  // UTF-8 code points without escape sequences

// Rows that `text` takes on a terminal which wraps lines at `columns`.
int WrappedRows(std::string_view text, int columns);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_TERMINAL_H_
