// Who cost the job versions, and whom it goes on without: a member that is to blame for two lost versions in a row is
// fenced, whatever it says of itself.
//
// Pure bookkeeping by name, driven by Coordinator, which decides who is to blame and whether enough others remain. What
// is remembered is bounded: the oldest entry goes first.
#ifndef WSYNC_SERVER_CORE_FENCES_H_
#define WSYNC_SERVER_CORE_FENCES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/core/hash.h"

namespace wsync {

class Fences {
 public:
  static constexpr int kLostVersions = 2;  // once may be an accident
  // Far more than a job has members that fail; a name takes some hundred bytes.
  static constexpr size_t kMaxRemembered = 1024;

  // A process of this name joins. Another incarnation than the one that was fenced is let in again, on probation: the
  // next version that it costs fences it. The same one stays where it was.
  void Joined(const std::string& name, const Hash128& incarnation);
  // The publish that began with epoch `publish` was lost, or held up to a deadline, by `name`. Returns how many it has
  // cost in a row; a publish counts once.
  int Blame(absl::Time now, const std::string& name, const Hash128& incarnation, uint64_t publish,
            const std::string& why);
  void Fence(const std::string& name);    // REQUIRES: it was blamed
  void Applied(const std::string& name);  // a version, with the others: what was before is forgiven
  // Lifts the fence of one, or (empty) of all; who was let in.
  std::vector<std::string> Lift(const std::string& name);

  std::string WhyFenced(const std::string& name) const;  // empty: it is not
  std::vector<std::string> Names() const;                // of the fenced

 private:
  struct Record {
    Hash128 incarnation;
    int lost = 0;
    uint64_t publish = 0;  // that was lost last
    std::string why;
    bool fenced = false;
    absl::Time when;
  };
  std::map<std::string, Record> records_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_FENCES_H_
