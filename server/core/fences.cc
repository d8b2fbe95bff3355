#include "server/core/fences.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace wsync {

void Fences::Joined(const std::string& name, const Hash128& incarnation) {
  const auto it = records_.find(name);
  if (it == records_.end() || !it->second.fenced) return;
  if (it->second.incarnation == incarnation && incarnation != Hash128{}) return;
  it->second.fenced = false;
  it->second.lost = kLostVersions - 1;
}

int Fences::Blame(absl::Time now, const std::string& name, const Hash128& incarnation, uint64_t publish,
                  const std::string& why) {
  if (!records_.contains(name) && records_.size() >= kMaxRemembered) {
    records_.erase(std::min_element(records_.begin(), records_.end(),
                                    [](const auto& a, const auto& b) { return a.second.when < b.second.when; }));
  }
  Record& record = records_[name];
  if (record.publish != publish) ++record.lost;
  record.publish = publish;
  record.incarnation = incarnation;
  record.why = why;
  record.when = now;
  return record.lost;
}

void Fences::Fence(const std::string& name) { records_.at(name).fenced = true; }

void Fences::Applied(const std::string& name) { records_.erase(name); }

std::vector<std::string> Fences::Lift(const std::string& name) {
  std::vector<std::string> lifted = Names();
  if (!name.empty()) std::erase_if(lifted, [&](const std::string& one) { return one != name; });
  for (const std::string& one : lifted) records_.erase(one);
  return lifted;
}

std::string Fences::WhyFenced(const std::string& name) const {
  const auto it = records_.find(name);
  if (it == records_.end() || !it->second.fenced) return "";
  return absl::StrCat("fenced, since it cost ", kLostVersions,
                      " versions in a row; mend and restart it, or run 'wsync ", "unfence ", name,
                      "'. The last time: ", it->second.why);
}

std::vector<std::string> Fences::Names() const {
  std::vector<std::string> names;
  for (const auto& [name, record] : records_) {
    if (record.fenced) names.push_back(name);
  }
  return names;
}

}  // namespace wsync
