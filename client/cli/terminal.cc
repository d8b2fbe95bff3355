#include "client/cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace wsync::cli {
namespace {

const char* Escape(Color color) {
  switch (color) {
    case Color::kGreen:
      return "\033[32m";
    case Color::kYellow:
      return "\033[33m";
    case Color::kRed:
      return "\033[31m";
    case Color::kDim:
      return "\033[2m";
    case Color::kBold:
      return "\033[1m";
    case Color::kNone:
      return "";
  }
  return "";
}

}  // namespace

bool IsTerminal(std::FILE* stream) { return isatty(fileno(stream)) == 1; }

bool UseColor(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  if (no_color != nullptr && *no_color != '\0') return false;
  return IsTerminal(stream) && (term == nullptr || std::strcmp(term, "dumb") != 0);
}

int TerminalWidth() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 100;
}

int TerminalHeight() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_row : 0;
}

std::string Paint(std::string_view text, Color color, bool use_color) {
  if (!use_color || color == Color::kNone) return Printable(text);
  return absl::StrCat(Escape(color), Printable(text), "\033[0m");
}

bool Write(std::FILE* to, std::string_view screen) {
  const std::string text = PrintableScreen(screen);
  return std::fwrite(text.data(), 1, text.size(), to) == text.size();
}

bool WriteJson(std::FILE* to, std::string_view json) {
  const std::string text = PrintableJson(json) + "\n";
  return std::fwrite(text.data(), 1, text.size(), to) == text.size();
}

void Tell(std::string_view who, std::string_view message) {
  Write(stderr, absl::StrCat(std::string(who), ": ", PrintableLines(message), "\n"));
}

std::string FormatRate(double bytes_per_second) {
  if (bytes_per_second >= 1e9) return absl::StrFormat("%.2f GB/s", bytes_per_second / 1e9);
  return FormatBytes(bytes_per_second) + "/s";
}

std::string FormatAge(double seconds) {
  if (seconds < 9.95) return absl::StrFormat("%.1f s", seconds);
  if (seconds < 120) return absl::StrFormat("%.0f s", seconds);
  if (seconds < 7200) return absl::StrFormat("%.0f min", seconds / 60);
  if (seconds < 172800) return absl::StrFormat("%.0f h", seconds / 3600);
  return absl::StrFormat("%.0f d", seconds / 86400);
}

int WrappedRows(std::string_view text, int columns) {
  int rows = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const int width = static_cast<int>(VisibleWidth(text.substr(0, end)));
    rows += std::max(1, (width + columns - 1) / columns);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return rows;
}

Table::Table(std::vector<std::string> header) : header_(std::move(header)), right_(header_.size(), false) {}

void Table::AlignRight(size_t column) { right_[column] = true; }

void Table::Add(std::vector<Cell> row) {
  row.resize(header_.size(), Cell(""));
  rows_.push_back(std::move(row));
}

std::string Table::Render(bool use_color) const {
  std::vector<size_t> width(header_.size());
  for (size_t c = 0; c < header_.size(); ++c) width[c] = VisibleWidth(header_[c]);
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], VisibleWidth(row[c].text));
  }
  std::string out;
  const auto line = [&](const std::vector<Cell>& row) {
    std::string text;
    for (size_t c = 0; c < row.size(); ++c) {
      if (c > 0) text += "  ";
      const std::string pad(width[c] - VisibleWidth(row[c].text), ' ');
      const std::string cell = row[c].text.empty() ? "" : Paint(row[c].text, row[c].color, use_color);
      absl::StrAppend(&text, right_[c] ? pad : cell, right_[c] ? cell : pad);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  std::vector<Cell> header;
  for (const std::string& name : header_) header.emplace_back(name, Color::kBold);
  line(header);
  for (const auto& row : rows_) line(row);
  return out;
}

}  // namespace wsync::cli
