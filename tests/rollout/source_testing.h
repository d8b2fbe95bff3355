// The source as a formula, and the catalogs and memory that tests of a sink use with it.
//
// "The source" is `version`'s bytes for the whole image, made up by SourceByte; a piece's digest is the sum of its
// bytes.
#ifndef WSYNC_TESTS_ROLLOUT_SOURCE_TESTING_H_
#define WSYNC_TESTS_ROLLOUT_SOURCE_TESTING_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "server/core/destinations.h"
#include "server/core/plan.h"

namespace wsync {

// What the source sends as byte `offset` of the image of `version`.
inline std::byte SourceByte(uint64_t version, int64_t offset) {
  return static_cast<std::byte>((static_cast<uint64_t>(offset) * 31 + version * 17) & 0xff);
}
std::vector<uint64_t> SourceDigests(const Plan& plan, uint64_t version);      // by piece
std::vector<std::byte> SourceBucket(const Bucket& bucket, uint64_t version);  // as it is on the wire
uint64_t PieceDigest(const Piece& piece, const std::byte* wire);

// A catalog of `weights` FP8 weights of 256 x 256 and a norm, cut into buckets of 64 KiB: about one weight a bucket.
std::vector<Tensor> SmallCatalog(int weights);
std::shared_ptr<const Plan> PlanOf(std::vector<Tensor> tensors);
// Every output whole, one after the other in handle 0; `bytes` is the memory it takes.
std::vector<Destination> WholeDestinations(const Plan& plan, int64_t* bytes);
// What WholeDestinations' memory holds once `version` was applied.
std::vector<std::byte> ExpectedMemory(const Plan& plan, uint64_t version);
// `copy` of a bucket into memory at `base`.
void CopyRows(const ScatterCopy& copy, const std::byte* wire, std::byte* base);

}  // namespace wsync

#endif  // WSYNC_TESTS_ROLLOUT_SOURCE_TESTING_H_
