#include "tests/faults/flatness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace wsync::faults {
namespace {

constexpr int64_t kWarmUp = 30;          // versions after a start until caches, pools and arenas have their size
constexpr int64_t kDescriptorSlack = 8;  // connections that come and go
constexpr int64_t kThreadSlack = 6;      // of gRPC's pool
#ifdef __SANITIZE_THREAD__
constexpr int64_t kResidentSlack = 256 << 20;  // the shadow of whatever memory was ever touched
#else
constexpr int64_t kResidentSlack = 24 << 20;
#endif
constexpr int64_t kBytesSlack = 64 << 20;  // a communicator that is just being made or ended

}  // namespace

void Flatness::Look(const std::string& name, pid_t pid, int64_t version, int64_t slack) {
  Process& seen = processes_[name];
  if (seen.pid != pid) seen = {pid, version, std::nullopt};
  if (version < seen.since + kWarmUp) return;
  const ProcessFacts now = FactsOf(pid);
  if (!seen.base.has_value()) seen.base = now;
  EXPECT_LE(now.descriptors, seen.base->descriptors + kDescriptorSlack) << name << " at version " << version;
  EXPECT_LE(now.threads, seen.base->threads + kThreadSlack) << name << " at version " << version;
  EXPECT_LE(now.resident_bytes, seen.base->resident_bytes * 5 / 4 + kResidentSlack)
      << name << " at version " << version;
  if (version >= seen.since + settled_) {
    if (!seen.settled_bytes.has_value()) seen.settled_bytes = now.resident_bytes;
    EXPECT_LE(now.resident_bytes, *seen.settled_bytes + slack) << name << " at version " << version;
  }
  last_[name] = absl::StrCat(seen.base->descriptors, " -> ", now.descriptors, " descriptors, ", seen.base->threads,
                             " -> ", now.threads, " threads, ", seen.base->resident_bytes >> 20, " -> ",
                             now.resident_bytes >> 20, " MB over ", version - seen.since, " versions");
}

void Flatness::LookAtBytes(const std::string& name, int64_t bytes, int64_t version) {
  int64_t& base = bytes_.try_emplace(name, bytes).first->second;
  if (version <= kWarmUp) base = std::max(base, bytes);
  EXPECT_LE(bytes, base + kBytesSlack) << name << " at version " << version;
  last_[name] = absl::StrCat(base >> 20, " -> ", bytes >> 20, " MB in use over ", version, " versions");
}

void Flatness::Print() const {
  for (const auto& [name, facts] : last_) std::printf("SOAK|%s|%s\n", name.c_str(), facts.c_str());
}

}  // namespace wsync::faults
