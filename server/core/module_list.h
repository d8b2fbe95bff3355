// The modules that a checkpoint's `quantization_config` keeps in high precision, in every syntax that is written:
//
//   model.layers.1, self_attn, lm_head     a run of whole components of a tensor's name: full or abbreviated names
//   model.layers.*.self_attn               the same with globs (see globs.h), as gpt-oss and ModelOpt write them
//   re:.*mlp\.(gate|up)_proj$              a regular expression as compressed-tensors means it: Python's re.match
//
// A module that matches keeps everything below it. Immutable; matching takes time linear in the name, whatever the
// pattern: patterns come from files.
#ifndef WSYNC_SERVER_CORE_MODULE_LIST_H_
#define WSYNC_SERVER_CORE_MODULE_LIST_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "server/core/catalog.h"

namespace re2 {
class RE2;
}

namespace wsync {

class ModuleList {
 public:
  // INVALID_ARGUMENT naming the entry: empty, a pattern that RE2 cannot read (look-around, back references, what Python
  // means otherwise), patterns too large in all.
  static absl::StatusOr<ModuleList> Create(const std::vector<std::string>& entries);
  ModuleList(ModuleList&&) noexcept;
  ModuleList& operator=(ModuleList&&) noexcept;
  ~ModuleList();

  bool Matches(std::string_view tensor) const;
  // Entries without wildcards that no tensor's name has: a list of other names, most likely.
  std::vector<std::string> NamingNothing(const Catalog& catalog) const;

 private:
  ModuleList();
  absl::Status Add(const std::string& entry);
  bool MatchesName(std::string_view tensor) const;
  bool MatchesPattern(std::string_view tensor) const;

  std::vector<std::string> names_;
  absl::flat_hash_set<std::string_view> name_set_;  // views into names_, whose elements stay when the list moves
  size_t longest_name_ = 0;                         // in components
  std::string alternatives_;
  std::unique_ptr<re2::RE2> patterns_;  // all of them in one, or null
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_MODULE_LIST_H_
