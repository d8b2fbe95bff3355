#include "server/core/globs.h"

namespace wsync {
namespace {

constexpr size_t kNone = std::string_view::npos;

// Position after the set that opens at glob[open], or kNone if nothing closes it.
size_t SetEnd(std::string_view glob, size_t open) {
  size_t i = open + 1;
  if (i < glob.size() && glob[i] == '!') ++i;
  const size_t close = glob.find(']', i + 1);
  return close == kNone ? kNone : close + 1;
}

bool SetContains(std::string_view set, char c) {
  const bool negated = set.starts_with('!');
  if (negated) set.remove_prefix(1);
  bool found = false;
  while (!set.empty()) {
    const bool range = set.size() >= 3 && set[1] == '-';
    const char high = range ? set[2] : set[0];
    found = found || (set[0] <= c && c <= high);
    set.remove_prefix(range ? 3 : 1);
  }
  return found != negated;
}

// Matches one character at *at and moves *at behind what matched it.
bool MatchOne(std::string_view glob, size_t* at, char c) {
  if (*at >= glob.size()) return false;
  const size_t set_end = glob[*at] == '[' ? SetEnd(glob, *at) : kNone;
  if (set_end != kNone) {
    const bool matches = SetContains(glob.substr(*at + 1, set_end - *at - 2), c);
    *at = set_end;
    return matches;
  }
  const char expected = glob[(*at)++];
  return expected == '?' || expected == c;
}

void AppendLiteral(char c, std::string* regex) {
  if (std::string_view("\\^$.|?*+()[]{}-").find(c) != kNone) regex->push_back('\\');
  regex->push_back(c);
}

void AppendSet(std::string_view set, std::string* regex) {
  regex->push_back('[');
  if (set.starts_with('!')) {
    regex->push_back('^');
    set.remove_prefix(1);
  }
  while (!set.empty()) {
    const bool range = set.size() >= 3 && set[1] == '-';
    AppendLiteral(set[0], regex);
    if (range) regex->push_back('-');
    if (range) AppendLiteral(set[2], regex);
    set.remove_prefix(range ? 3 : 1);
  }
  regex->push_back(']');
}

}  // namespace

bool GlobMatch(std::string_view glob, std::string_view text) {
  size_t g = 0, t = 0;
  size_t after_star = kNone, star_text = 0;  // where to go back to: only the last '*' ever matters
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      after_star = ++g;
      star_text = t;
    } else if (MatchOne(glob, &g, text[t])) {
      ++t;
    } else if (after_star != kNone) {
      g = after_star;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

size_t UnclosedSet(std::string_view glob) {
  for (size_t i = 0; i < glob.size();) {
    const size_t end = glob[i] == '[' ? SetEnd(glob, i) : i + 1;
    if (end == kNone) return i;
    i = end;
  }
  return kNone;
}

bool IsGlob(std::string_view text) { return text.find_first_of("*?[") != kNone; }

std::string GlobAsRegex(std::string_view glob) {
  std::string regex;
  for (size_t i = 0; i < glob.size();) {
    const size_t set_end = glob[i] == '[' ? SetEnd(glob, i) : kNone;
    if (set_end != kNone) {
      AppendSet(glob.substr(i + 1, set_end - i - 2), &regex);
      i = set_end;
      continue;
    }
    const char c = glob[i++];
    if (c == '*') {
      regex += ".*";
    } else if (c == '?') {
      regex += '.';
    } else {
      AppendLiteral(c, &regex);
    }
  }
  return regex;
}

}  // namespace wsync
