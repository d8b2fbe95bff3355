// How things look on a terminal: colour only where a person looks, units people read, tables that line up.
//
// All that a command prints goes out by the functions here, which let nothing of files, peers and users steer a
// terminal or forge a line (server/core/printable.h): the text of a cell, of a painted word, of an argument to Print is
// foreign; layout is ours.
#ifndef WSYNC_CLIENT_CLI_TERMINAL_H_
#define WSYNC_CLIENT_CLI_TERMINAL_H_

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/core/printable.h"
#include "server/core/text.h"

namespace wsync::cli {

enum class Color { kNone, kGreen, kYellow, kRed, kDim, kBold };

// True when `stream` is a terminal, NO_COLOR is unset or empty, and TERM is not "dumb".
bool UseColor(std::FILE* stream);
bool IsTerminal(std::FILE* stream);
int TerminalWidth();   // columns of stdout; 100 where it is not a terminal
int TerminalHeight();  // rows of stdout; 0 where it is not a terminal
std::string Paint(std::string_view text, Color color, bool use_color);

// What was laid out: a rendered table, painted words, lines of ours. False where the stream takes no more.
bool Write(std::FILE* to, std::string_view screen);
bool WriteJson(std::FILE* to, std::string_view json);  // and a line break
// One line for what may be several: "<who>: <message>", e.g. "wsync" or "note".
void Tell(std::string_view who, std::string_view message);

// Texts go through Printable, numbers as they are.
template <typename Argument>
auto Shown(const Argument& argument) {
  if constexpr (std::is_convertible_v<const Argument&, std::string_view>) {
    return Printable(argument);
  } else {
    return argument;
  }
}
template <typename Argument>
using ShownAs = decltype(Shown(std::declval<const Argument&>()));

// printf whose texts may be anybody's.
template <typename... Arguments>
void Print(std::FILE* to, const absl::FormatSpec<ShownAs<Arguments>...>& format, const Arguments&... arguments) {
  Write(to, absl::StrFormat(format, Shown(arguments)...));
}

std::string FormatRate(double bytes_per_second);  // "1.24 GB/s"
std::string FormatAge(double seconds);            // "3 s", "5 min", "2 h", "4 d"

// Anybody's text, at most kMaxShownName bytes of it.
struct Cell {
  Cell(std::string content, Color paint = Color::kNone) : text(Printable(content, kMaxShownName)), color(paint) {}
  Cell(const char* content, Color paint = Color::kNone) : Cell(std::string(content), paint) {}
  std::string text;
  Color color;
};

// Left-aligned text, right-aligned numbers; widths by what a terminal shows.
class Table {
 public:
  explicit Table(std::vector<std::string> header);
  void AlignRight(size_t column);
  void Add(std::vector<Cell> row);
  bool empty() const { return rows_.empty(); }
  // Two spaces between columns, no trailing spaces; the header in bold and cells in their colours where `use_color`.
  std::string Render(bool use_color) const;

 private:
  std::vector<std::string> header_;
  std::vector<bool> right_;
  std::vector<std::vector<Cell>> rows_;
};

// Rows that `text` takes on a terminal which wraps lines at `columns`.
int WrappedRows(std::string_view text, int columns);

}  // namespace wsync::cli

#endif  // WSYNC_CLIENT_CLI_TERMINAL_H_
