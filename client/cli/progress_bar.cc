#include "client/cli/progress_bar.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"

namespace wsync::cli {
namespace {

constexpr int kWidth = 30;  // fits an 80-column terminal with label and note

}  // namespace

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)), enabled_(IsTerminal(stderr)), color_(UseColor(stderr)) {}

ProgressBar::~ProgressBar() { Clear(); }

void ProgressBar::Update(double fraction, std::string_view note) {
  if (!enabled_) return;
  fraction = std::clamp(fraction, 0.0, 1.0);
  const int filled = static_cast<int>(fraction * kWidth);
  const std::string bar =
      absl::StrCat(Paint(std::string(filled, '='), Color::kGreen, color_), std::string(kWidth - filled, ' '));
  Show(absl::StrFormat("%s [%s] %3.0f%%  %s", Printable(label_), bar, fraction * 100, Printable(note, kMaxShownName)));
}

void ProgressBar::Wait(std::string_view for_what) {
  if (enabled_) Show(absl::StrFormat("%s: waiting for %s", Printable(label_), for_what));
}

void ProgressBar::Show(const std::string& line) {
  const std::string whole = absl::StrCat("\r\033[K", line);
  std::fwrite(whole.data(), 1, whole.size(), stderr);
  std::fflush(stderr);
}

void ProgressBar::Clear() {
  if (!enabled_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
}

}  // namespace wsync::cli
