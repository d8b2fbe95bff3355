// A random model for the quantizer's and the loader's contracts: its plan, its weights, and what the kernels' encoder
// gives for each bucket when called piece by piece on one thread.
#ifndef WSYNC_TESTS_BACKEND_CONTRACT_ENCODED_MODEL_H_
#define WSYNC_TESTS_BACKEND_CONTRACT_ENCODED_MODEL_H_

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/core/plan.h"
#include "tests/backend/contract/agent.h"

namespace wsync::contract {

class EncodedModel {
 public:
  // The same for the same arguments. Tensors are cut: buckets are as small as plans allow.
  EncodedModel(uint32_t seed, const RecipeRules& rules);
  // The given tensors with random finite contents.
  EncodedModel(std::vector<Tensor> tensors, const RecipeRules& rules, int64_t bucket_bytes = kMinBucketBytes);

  const std::shared_ptr<const Plan>& plan() const { return plan_; }
  int64_t buckets() const { return static_cast<int64_t>(plan_->buckets().size()); }
  const Bucket& bucket(int64_t k) const { return plan_->buckets()[k]; }

  // All weights in one run of bytes, tensor i at offset(i).
  const Bytes& weights() const { return weights_; }
  int64_t offset(int64_t tensor) const { return offsets_[tensor]; }
  std::vector<const std::byte*> AddressesAt(const std::byte* base) const;
  // Overwrites one element (2-byte dtypes only).
  void Poke(int64_t tensor, int64_t element, uint16_t bits);

  Bytes EncodeBucket(int64_t k, std::vector<uint64_t>* digests) const;  // with padding zero; digests by piece index
  Bytes EncodeImage(std::vector<uint64_t>* digests) const;

 private:
  void FillRandomly(uint32_t seed);

  std::shared_ptr<const Plan> plan_;
  Bytes weights_;
  std::vector<int64_t> offsets_;
};

}  // namespace wsync::contract

#endif  // WSYNC_TESTS_BACKEND_CONTRACT_ENCODED_MODEL_H_
