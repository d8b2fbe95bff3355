#include "server/trainer/registration.h"

#include <sys/random.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/core/scheme.h"

namespace wsync {
namespace {

std::string NewRegistrationId() {
  uint64_t random = 0;
  while (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
  }
  return absl::StrFormat("registration-%016x", random);
}

// `why`, with the handle it is about and a tensor by which its owner knows it.
absl::Status AtHandle(size_t handle, const absl::Status& why, const std::vector<Tensor>& tensors,
                      const std::vector<TensorPlace>& places) {
  std::string at = absl::StrCat("memory handle ", handle);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (places[i].handle != handle) continue;
    absl::StrAppend(&at, ", where tensor '", tensors[i].name, "' lies");
    break;
  }
  return absl::Status(why.code(), absl::StrCat(at, ": ", std::string(why.message())));
}

absl::StatusOr<const std::byte*> AddressOf(const Tensor& tensor, const TensorPlace& place,
                                           const std::vector<std::unique_ptr<Buffer>>& buffers) {
  if (place.handle >= buffers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' lies in memory handle ", place.handle,
                                                   ", but only ", buffers.size(), " were registered"));
  }
  const Buffer& buffer = *buffers[place.handle];
  const uint64_t capacity = static_cast<uint64_t>(buffer.bytes());
  const uint64_t bytes = static_cast<uint64_t>(BytesOf(tensor));
  if (place.offset_bytes > capacity || bytes > capacity - place.offset_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", tensor.name, "' has ", bytes, " bytes at offset ",
                                                   place.offset_bytes, " of memory handle ", place.handle,
                                                   ", which has only ", capacity, " bytes"));
  }
  const std::byte* address = buffer.data() + place.offset_bytes;
  const int64_t element = DtypeBytes(tensor.dtype);
  if (reinterpret_cast<uintptr_t>(address) % element != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor '", tensor.name, "' at offset ", place.offset_bytes, " of memory handle ", place.handle,
        " is not aligned to its ", element, "-byte elements (", std::string(DtypeName(tensor.dtype)), ")"));
  }
  return address;
}

absl::StatusOr<std::shared_ptr<const Catalog>> CatalogOf(RegistrationRequest& request) {
  auto catalog = Catalog::Create(std::move(request.tensors));
  if (!catalog.ok()) return catalog.status();
  return std::make_shared<const Catalog>(*std::move(catalog));
}

absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(std::shared_ptr<const Catalog> catalog,
                                                   const RegistrationRequest& request, RecipeRules rules,
                                                   int64_t bucket_bytes) {
  auto& keep = rules.modules_to_not_convert;
  keep.insert(keep.end(), request.modules_to_not_convert.begin(), request.modules_to_not_convert.end());
  auto plan = Plan::Create(std::move(catalog), rules, bucket_bytes);
  if (!plan.ok()) return plan;
  absl::Status mixed = CheckOneScheme((*plan)->catalog(), (*plan)->rules(), (*plan)->recipes());
  if (!mixed.ok()) return mixed;
  return plan;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Plan>> PlanOf(RegistrationRequest& request, RecipeRules rules,
                                                   int64_t bucket_bytes) {
  auto catalog = CatalogOf(request);
  if (!catalog.ok()) return catalog.status();
  return PlanOf(*std::move(catalog), request, std::move(rules), bucket_bytes);
}

absl::StatusOr<std::shared_ptr<const Registration>> Registration::Create(RegistrationRequest request, RecipeRules rules,
                                                                         int64_t bucket_bytes, Memory& memory) {
  if (request.places.size() != request.tensors.size()) {
    return absl::InvalidArgumentError("every registered tensor needs exactly one place in memory");
  }
  std::shared_ptr<Registration> registration(new Registration());
  registration->id_ = NewRegistrationId();
  auto owner = ClientProcess::Open(request.pid);
  if (!owner.ok()) return owner.status();
  registration->owner_ = *std::move(owner);

  auto created = CatalogOf(request);
  if (!created.ok()) return created.status();
  // Before the plan, which takes time and memory for every byte that is claimed: now they are known to be there.
  if (absl::Status status = registration->Locate(**created, request, memory); !status.ok()) return status;
  auto plan = PlanOf(*created, request, std::move(rules), bucket_bytes);
  if (!plan.ok()) return plan.status();
  registration->plan_ = *std::move(plan);
  return registration;
}

absl::Status Registration::Locate(const Catalog& catalog, const RegistrationRequest& request, Memory& memory) {
  const std::vector<Tensor>& tensors = catalog.tensors();
  for (size_t i = 0; i < request.handles.size(); ++i) {
    auto buffer = memory.Open(request.handles[i], Access::kRead);
    if (!buffer.ok()) return AtHandle(i, buffer.status(), tensors, request.places);
    buffers_.push_back(*std::move(buffer));
  }
  addresses_.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    auto address = AddressOf(tensors[i], request.places[i], buffers_);
    if (!address.ok()) return address.status();
    addresses_.push_back(*address);
  }
  return absl::OkStatus();
}

PlanInfo InfoOf(const Plan& plan) {
  PlanInfo info;
  info.catalog_fingerprint = plan.catalog().fingerprint();
  info.plan_hash = plan.hash();
  info.tensors = static_cast<int64_t>(plan.catalog().tensors().size());
  info.quantized_tensors = plan.quantized_tensors();
  info.buckets = static_cast<int64_t>(plan.buckets().size());
  info.source_bytes = plan.source_bytes();
  info.payload_bytes = plan.payload_bytes();
  info.wire_bytes = plan.image_bytes();
  return info;
}

}  // namespace wsync
