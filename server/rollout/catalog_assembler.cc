#include "server/rollout/catalog_assembler.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/convert.h"

namespace wsync {

absl::StatusOr<std::optional<AnnouncedCatalog>> CatalogAssembler::Add(const v1::CatalogChunk& chunk) {
  if (chunk.first()) {
    state_ = State::kCollecting;
    catalog_ = {};
  } else if (state_ == State::kSkipping) {
    return std::nullopt;
  } else if (state_ == State::kBetween && !chunk.last()) {
    state_ = State::kSkipping;
    return absl::InvalidArgumentError("the coordinator sent the middle of a catalog without its beginning");
  }
  if (absl::Status status = Append(chunk); !status.ok()) {
    state_ = State::kSkipping;
    catalog_ = {};
    return status;
  }
  if (!chunk.last()) return std::nullopt;
  state_ = State::kBetween;
  catalog_.fingerprint = FromProto(chunk.catalog_fingerprint());
  catalog_.plan_hash = FromProto(chunk.plan_hash());
  AnnouncedCatalog whole = std::exchange(catalog_, {});
  if (whole.tensors.empty() != whole.fingerprint.IsZero()) {
    return absl::InvalidArgumentError(absl::StrCat("the coordinator announced a catalog of ", whole.tensors.size(),
                                                   " tensors with fingerprint ", whole.fingerprint.Hex()));
  }
  return whole;
}

absl::Status CatalogAssembler::Append(const v1::CatalogChunk& chunk) {
  if (chunk.first()) {
    absl::StatusOr<RecipeRules> rules = FromProto(chunk.rules());
    // "No catalog" is a first and last chunk in one, without rules.
    if (!rules.ok() && !(chunk.last() && chunk.tensors().empty())) return rules.status();
    if (rules.ok()) catalog_.rules = *std::move(rules);
    catalog_.bucket_bytes = chunk.bucket_bytes();
  }
  if (static_cast<int64_t>(catalog_.tensors.size()) + chunk.tensors_size() > kMaxTensors) {
    return absl::InvalidArgumentError(
        absl::StrCat("the coordinator announced a catalog of more than ", kMaxTensors, " tensors"));
  }
  for (const v1::Tensor& tensor : chunk.tensors()) {
    absl::StatusOr<Tensor> converted = FromProto(tensor);
    if (!converted.ok()) return converted.status();
    catalog_.tensors.push_back(*std::move(converted));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Plan>> MakePlan(AnnouncedCatalog announced) {
  absl::StatusOr<Catalog> catalog = Catalog::Create(std::move(announced.tensors));
  if (!catalog.ok()) return catalog.status();
  if (catalog->fingerprint() != announced.fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("the coordinator's catalog has fingerprint ", announced.fingerprint.Hex(), ", this sink's ",
                     catalog->fingerprint().Hex(), ": both sides must run the same wsync version"));
  }
  absl::StatusOr<std::shared_ptr<const Plan>> plan =
      Plan::Create(std::make_shared<const Catalog>(*std::move(catalog)), announced.rules, announced.bucket_bytes);
  if (plan.ok() && (*plan)->hash() != announced.plan_hash) {
    return absl::FailedPreconditionError(absl::StrCat("the coordinator's plan is ", announced.plan_hash.Hex(),
                                                      ", this sink's ", (*plan)->hash().Hex(),
                                                      ": both sides must run the same wsync version"));
  }
  return plan;
}

}  // namespace wsync
