#include "client/checkpoint/natural_order.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"

namespace wsync {
namespace {

// Takes the run of digits at the front, without leading zeros: then longer means larger.
std::string_view TakeNumber(std::string_view* text) {
  size_t end = 0;
  while (end < text->size() && absl::ascii_isdigit((*text)[end])) ++end;
  std::string_view number = text->substr(0, end);
  text->remove_prefix(end);
  while (number.size() > 1 && number.front() == '0') number.remove_prefix(1);
  return number;
}

// What two names have in common says nothing about their order: where it ends, or where the number begins in which it
// ends. Names of one model have most of their letters in common.
size_t CommonPieces(std::string_view a, std::string_view b) {
  size_t common = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  while (common > 0 && absl::ascii_isdigit(a[common - 1])) --common;
  return common;
}

}  // namespace

bool NaturalLess(std::string_view a, std::string_view b) {
  const size_t common = CommonPieces(a, b);
  std::string_view rest_a = a.substr(common), rest_b = b.substr(common);
  while (!rest_a.empty() && !rest_b.empty()) {
    if (absl::ascii_isdigit(rest_a.front()) && absl::ascii_isdigit(rest_b.front())) {
      const std::string_view number_a = TakeNumber(&rest_a), number_b = TakeNumber(&rest_b);
      if (number_a.size() != number_b.size()) return number_a.size() < number_b.size();
      if (number_a != number_b) return number_a < number_b;
      continue;
    }
    if (rest_a.front() != rest_b.front()) return rest_a.front() < rest_b.front();
    rest_a.remove_prefix(1);
    rest_b.remove_prefix(1);
  }
  if (rest_a.empty() != rest_b.empty()) return rest_a.empty();
  return a < b;
}

}  // namespace wsync
