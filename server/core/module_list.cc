#include "server/core/module_list.h"

#include <re2/re2.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/core/globs.h"

namespace wsync {
namespace {

constexpr std::string_view kRegexPrefix = "re:";
constexpr std::string_view kWeight = ".weight";
constexpr int kMaxProgramSize = 20'000;  // of RE2, for all patterns: hundreds of them; bounds the time of one match

RE2::Options RegexOptions() {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_never_capture(true);
  return options;
}

absl::Status Unusable(const std::string& entry, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("recipe: 'modules_to_not_convert' entry '", entry, "' cannot be used: ", why,
                   "; take it out of the list (of the checkpoint's config.json, or of recipe.modules_to_not_convert), "
                   "and name those tensors by 'exclude' globs"));
}

// What RE2 reads without an error, but otherwise than Python.
bool MeansOtherwiseInPython(const std::string& regex) {
  return regex.find("{,") != std::string::npos || regex.find("[[:") != std::string::npos;
}

// Calls `visit` with every run of at most `longest` whole components of `name`, until it returns true.
template <typename Visit>
bool AnyRun(std::string_view name, size_t longest, const Visit& visit) {
  for (size_t begin = 0; begin != std::string_view::npos;) {
    size_t end = begin;
    for (size_t count = 0; count < longest; ++count) {
      end = name.find('.', end);
      if (visit(name.substr(begin, end == std::string_view::npos ? end : end - begin))) return true;
      if (end == std::string_view::npos) break;
      ++end;
    }
    begin = name.find('.', begin);
    if (begin != std::string_view::npos) ++begin;
  }
  return false;
}

}  // namespace

ModuleList::ModuleList() = default;
ModuleList::ModuleList(ModuleList&&) noexcept = default;
ModuleList& ModuleList::operator=(ModuleList&&) noexcept = default;
ModuleList::~ModuleList() = default;

absl::StatusOr<ModuleList> ModuleList::Create(const std::vector<std::string>& entries) {
  ModuleList list;
  for (const std::string& entry : entries) {
    if (absl::Status status = list.Add(entry); !status.ok()) return status;
  }
  list.name_set_.insert(list.names_.begin(), list.names_.end());
  if (list.alternatives_.empty()) return list;
  list.patterns_ = std::make_unique<RE2>(list.alternatives_, RegexOptions());
  if (!list.patterns_->ok() || list.patterns_->ProgramSize() > kMaxProgramSize) {
    return absl::InvalidArgumentError(absl::StrCat("recipe: the patterns in 'modules_to_not_convert' are too large in ",
                                                   "all (", list.alternatives_.size(),
                                                   " bytes): use plain names or 'exclude' globs"));
  }
  return list;
}

absl::Status ModuleList::Add(const std::string& entry) {
  std::string_view name = entry;
  if (name.starts_with(kRegexPrefix)) {
    const std::string regex(name.substr(kRegexPrefix.size()));
    if (MeansOtherwiseInPython(regex)) return Unusable(entry, "RE2 reads it otherwise than Python does");
    const RE2 compiled(regex, RegexOptions());
    if (!compiled.ok()) return Unusable(entry, compiled.error());
    absl::StrAppend(&alternatives_, alternatives_.empty() ? "" : "|", "(?:", regex, ")");
    return absl::OkStatus();
  }
  if (name.starts_with('.')) name.remove_prefix(1);
  if (name.ends_with('.')) name.remove_suffix(1);
  if (name.empty()) {
    return absl::InvalidArgumentError("recipe: an empty entry in 'modules_to_not_convert'; remove it");
  }
  if (IsGlob(name)) {
    if (name.ends_with(kWeight)) name.remove_suffix(kWeight.size());
    absl::StrAppend(&alternatives_, alternatives_.empty() ? "" : "|", "(?:(?:.*\\.)?", GlobAsRegex(name), "$)");
    return absl::OkStatus();
  }
  names_.emplace_back(name);
  longest_name_ = std::max<size_t>(longest_name_, 1 + std::count(name.begin(), name.end(), '.'));
  return absl::OkStatus();
}

// Looks every run of components up in the set, so a checkpoint that lists 45,000 modules costs no more than one.
bool ModuleList::MatchesName(std::string_view tensor) const {
  return AnyRun(tensor, longest_name_, [this](std::string_view run) { return name_set_.contains(run); });
}

// Of the tensor's module and of every module around it.
bool ModuleList::MatchesPattern(std::string_view tensor) const {
  if (patterns_ == nullptr) return false;
  for (size_t end = tensor.find('.'); end != std::string_view::npos; end = tensor.find('.', end + 1)) {
    const re2::StringPiece module(tensor.data(), end);
    if (patterns_->Match(module, 0, module.size(), RE2::ANCHOR_START, nullptr, 0)) return true;
  }
  return false;
}

bool ModuleList::Matches(std::string_view tensor) const { return MatchesName(tensor) || MatchesPattern(tensor); }

std::vector<std::string> ModuleList::NamingNothing(const Catalog& catalog) const {
  absl::flat_hash_set<std::string_view> seen;
  for (const Tensor& tensor : catalog.tensors()) {
    AnyRun(tensor.name, longest_name_, [&](std::string_view run) {
      const auto found = name_set_.find(run);
      if (found != name_set_.end()) seen.insert(*found);
      return false;
    });
  }
  std::vector<std::string> nothing;
  for (const std::string_view name : name_set_) {
    if (!seen.contains(name)) nothing.emplace_back(name);
  }
  std::sort(nothing.begin(), nothing.end());
  return nothing;
}

}  // namespace wsync
