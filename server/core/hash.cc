#include "server/core/hash.h"

#include <xxhash.h>

#include <bit>

#include "absl/strings/str_format.h"

namespace wsync {

static_assert(std::endian::native == std::endian::little, "hashed integers are fed as they lie in memory");

struct Hasher::State {
  XXH3_state_t xxh3;
};

std::string Hash128::Hex() const { return absl::StrFormat("%016x%016x", high, low); }

std::string Hash128::ShortHex() const { return Hex().substr(0, 12); }

Hasher::Hasher() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh3); }

Hasher::~Hasher() = default;

Hasher& Hasher::Add(uint64_t value) { return AddBytes(&value, sizeof(value)); }

Hasher& Hasher::Add(std::string_view text) {
  Add(static_cast<uint64_t>(text.size()));
  return AddBytes(text.data(), text.size());
}

Hasher& Hasher::Add(absl::Span<const uint64_t> values) {
  return AddBytes(values.data(), values.size() * sizeof(uint64_t));
}

Hasher& Hasher::AddBytes(const void* data, size_t bytes) {
  // xxhash reports a null pointer as an error even for no bytes, and an empty view may have one.
  if (bytes > 0) XXH3_128bits_update(&state_->xxh3, data, bytes);
  return *this;
}

Hash128 Hasher::Finish() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return {hash.high64, hash.low64};
}

}  // namespace wsync
