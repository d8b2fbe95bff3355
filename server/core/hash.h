// 128-bit content hashes (XXH3-128) of catalogs, plans and versions. Not for security: for equality.
#ifndef WSYNC_SERVER_CORE_HASH_H_
#define WSYNC_SERVER_CORE_HASH_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace wsync {

struct Hash128 {
  uint64_t high = 0;
  uint64_t low = 0;
  auto operator<=>(const Hash128&) const = default;
  bool IsZero() const { return high == 0 && low == 0; }
  std::string Hex() const;       // 32 lower-case digits
  std::string ShortHex() const;  // the first 12, for tables
};

// Feeds fields one by one: integers as little-endian 64 bit, strings with their length, so no two field lists collide
// by concatenation. AddBytes adds no length: give one with Add where it can vary. Not safe to share between threads.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher& Add(uint64_t value);
  Hasher& Add(std::string_view text);
  Hasher& Add(absl::Span<const uint64_t> values);  // as one by one, in a fraction of the time
  Hasher& AddBytes(const void* data, size_t bytes);
  Hash128 Finish() const;  // of everything fed so far; more may follow

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace wsync

#endif  // WSYNC_SERVER_CORE_HASH_H_
